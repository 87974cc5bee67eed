"""Which binary a runtime type names, how it is started, and what each generation wants on stdin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams
from agent.api.types.introspection_pb2 import RuntimeInfo
from agent.api.types.runc.options.oci_pb2 import Options
from agent.config.handlers import RuntimeHandler
from agent.errdefs import FailedPrecondition, Internal, InvalidArgument, NotFound, Unknown
from agent.linux.processes import Command, Completed, ProcessInfo
from agent.runtime.v2 import options, shim_binary, shim_delete
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.shim_binary import ShimBinaries

CONFIG = RuntimeConfig(
    Path("/run/orlop"), Path("/var/lib/orlop"), "/run/orlop/orlop.sock", "/run/orlop/ev", "/bin/orlop", "/shims", "/helpers"
)
OPTIONS = options.pack(Options(binary_name="crun"))
ADDRESS = b"unix:///run/containerd/s/x"
Shim = Callable[[Command], Completed]


class Runner:
    """Processes whose children are played by a function."""

    def __init__(self, shim: Shim) -> None:
        self.commands: list[Command] = []
        self._shim = shim

    async def run(self, command: Command) -> Completed:
        self.commands.append(command)
        return self._shim(command)

    async def open(self, pid: int, start_time: int | None = None) -> None:
        return None

    async def table(self) -> list[ProcessInfo]:
        return []


def is_params(stdin: bytes) -> bool:
    return b"instance" in stdin or BootstrapParams.FromString(stdin).instance_id == "c1"


def shim_of_16(command: Command) -> Completed:
    """Its first field is read as a type URL."""
    if command.stdin and not command.stdin.startswith(OPTIONS.SerializeToString()):
        return Completed(1, b"", b"type with url c1: not found")
    return Completed(0, ADDRESS, b"")


def shim_of_main(command: Command) -> Completed:
    if command.stdin == OPTIONS.SerializeToString():
        return Completed(1, b"", b"shim was started through the deprecated API")
    params = BootstrapParams.FromString(command.stdin)
    assert (params.instance_id, params.namespace) == ("c1", "k8s.io")
    assert params.extensions[0].value == OPTIONS
    assert (params.containerd_ttrpc_address, params.containerd_grpc_address) == ("/run/orlop/ev", "/run/orlop/orlop.sock")
    return Completed(0, ADDRESS, b"")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "c1").mkdir()
    return Bundle("c1", tmp_path / "c1", tmp_path / "work")


@pytest.fixture
def binary(tmp_path: Path) -> str:
    path = tmp_path / "containerd-shim-x-v2"
    path.touch(mode=0o755)
    return str(path)


async def test_the_command(bundle: Bundle, binary: str) -> None:
    runner = Runner(shim_of_16)
    assert await ShimBinaries(CONFIG, runner).start(binary, bundle, OPTIONS, "/shims/c1") == Bootstrap(2, ADDRESS.decode(), "ttrpc")
    [command] = runner.commands
    assert command.argv == (
        *(binary, "-namespace", "k8s.io", "-address", "/run/orlop/orlop.sock", "-publish-binary", "/bin/orlop"),
        *("-id", "c1", "start"),
    )
    assert (command.cwd, command.cgroup) == (bundle.path, "/shims/c1")
    expected = {"TTRPC_ADDRESS": "/run/orlop/ev", "GRPC_ADDRESS": "/run/orlop/orlop.sock", "NAMESPACE": "k8s.io", "GOMAXPROCS": "2"}
    assert expected.items() <= command.env.items()
    assert command.env["PATH"] == os.environ["PATH"]


async def test_an_old_shim_gets_the_legacy_form_and_nothing_else(bundle: Bundle, binary: str) -> None:
    runner = Runner(shim_of_16)
    binaries = ShimBinaries(CONFIG, runner)
    for _ in range(2):
        await binaries.start(binary, bundle, OPTIONS, "")
    assert [command.stdin for command in runner.commands] == [OPTIONS.SerializeToString()] * 2


async def test_a_new_shim_is_remembered_until_it_is_another_file(bundle: Bundle, binary: str) -> None:
    runner = Runner(shim_of_main)
    binaries = ShimBinaries(CONFIG, runner)
    for _ in range(2):
        await binaries.start(binary, bundle, OPTIONS, "")
    assert [is_params(command.stdin) for command in runner.commands] == [False, True, True]
    os.utime(binary, ns=(1, 1))
    await binaries.start(binary, bundle, OPTIONS, "")
    assert [is_params(command.stdin) for command in runner.commands[3:]] == [False, True]


async def test_a_shim_without_options_gets_an_empty_stdin(bundle: Bundle, binary: str) -> None:
    runner = Runner(lambda _: Completed(0, ADDRESS, b""))
    await ShimBinaries(CONFIG, runner).start(binary, bundle, None, "")
    assert runner.commands[0].stdin == b""


async def test_stderr_does_not_spoil_the_address(bundle: Bundle, binary: str) -> None:
    runner = Runner(lambda _: Completed(0, ADDRESS, b"level=warning msg=something"))
    assert (await ShimBinaries(CONFIG, runner).start(binary, bundle, None, "")).address == ADDRESS.decode()


@pytest.mark.parametrize(
    ("completed", "error", "text"),
    [
        (Completed(1, b"", b"no space left"), Unknown, "no space left"),
        (Completed(-9, b"", b""), Unknown, "ended with -9: it said nothing"),
        (Completed(0, b"", b""), Internal, "printed nothing"),
        (Completed(0, b"usage: ...", b""), Internal, "something else"),
    ],
)
async def test_a_start_that_fails(bundle: Bundle, binary: str, completed: Completed, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        await ShimBinaries(CONFIG, Runner(lambda _: completed)).start(binary, bundle, None, "")


async def test_a_binary_that_is_gone(bundle: Bundle) -> None:
    with pytest.raises(NotFound, match="/no/such"):
        await ShimBinaries(CONFIG, Runner(shim_of_16)).start("/no/such", bundle, None, "")


async def test_info(binary: str) -> None:
    runner = Runner(lambda _: Completed(0, RuntimeInfo(name="io.containerd.runc.v2").SerializeToString(), b""))
    info = await ShimBinaries(CONFIG, runner).info(binary, OPTIONS)
    assert info is not None
    assert info.name == "io.containerd.runc.v2"
    assert (runner.commands[0].argv, runner.commands[0].cgroup) == ((binary, "-info"), "/helpers")


async def test_info_of_an_old_shim(binary: str) -> None:
    runner = Runner(lambda _: Completed(2, b"", b"flag provided but not defined"))
    assert await ShimBinaries(CONFIG, runner).info(binary, None) is None


async def test_info_that_is_garbage(binary: str) -> None:
    with pytest.raises(Internal, match="no RuntimeInfo"):
        await ShimBinaries(CONFIG, Runner(lambda _: Completed(0, b"\xff\xff", b""))).info(binary, None)


# ---- which binary


@pytest.mark.parametrize(
    ("runtime_type", "name"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("io.containerd.kata.v2", "containerd-shim-kata-v2"),
        ("a.b", "containerd-shim-a-b"),
    ],
)
def test_names(runtime_type: str, name: str) -> None:
    assert shim_binary.binary_name(runtime_type) == name


@pytest.mark.parametrize("runtime_type", ["", "runc", ".runc.v2", "io.containerd/runc.v2", "io..v2", "io.runc."])
def test_no_names(runtime_type: str) -> None:
    with pytest.raises(InvalidArgument):
        shim_binary.binary_name(runtime_type)


async def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binary: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    handler = RuntimeHandler("x", "io.containerd.x.v2")
    assert await shim_binary.resolve(handler) == Path(binary)
    assert await shim_binary.resolve(RuntimeHandler("x", binary)) == Path(binary)
    assert await shim_binary.resolve(RuntimeHandler("x", path=binary)) == Path(binary)
    assert await shim_binary.still_there("/upgraded/away", handler) == binary
    assert await shim_binary.still_there(binary, RuntimeHandler("y", "io.containerd.y.v2")) == binary
    with pytest.raises(NotFound, match="handler 'y': no containerd-shim-y-v2 in PATH"):
        await shim_binary.resolve(RuntimeHandler("y", "io.containerd.y.v2"))
    with pytest.raises(NotFound, match="no executable shim"):
        await shim_binary.resolve(RuntimeHandler("x", path="/no/such"))


# ---- `SHIM delete`


async def test_delete(bundle: Bundle) -> None:
    runner = Runner(lambda _: Completed(0, b"", b"level=info msg=starting\nlevel=warning msg=busy\n"))
    assert await shim_delete.run(CONFIG, runner, "/bin/shim", bundle) == "level=warning msg=busy"
    [command] = runner.commands
    assert command.argv[-5:] == ("-id", "c1", "-bundle", str(bundle.path), "delete")
    assert (command.cwd, command.stdin, command.cgroup) == (bundle.path, b"", "/helpers")


@pytest.mark.parametrize(
    ("completed", "text"),
    [(Completed(1, b"", b"open runtime: no such file"), "open runtime"), (Completed(0, b"\xff\xff", b""), "no answer")],
)
async def test_delete_that_fails(bundle: Bundle, completed: Completed, text: str) -> None:
    with pytest.raises(Unknown, match=text):
        await shim_delete.run(CONFIG, Runner(lambda _: completed), "/bin/shim", bundle)


@pytest.mark.parametrize(("there", "text"), [(True, "/bin/shim is gone"), (False, "its bundle is gone")])
async def test_delete_tells_what_is_missing(bundle: Bundle, there: bool, text: str) -> None:
    """The kernel names the binary in both cases (#13977)."""

    def missing(command: Command) -> Completed:
        raise FileNotFoundError(2, "No such file or directory", command.argv[0])

    if not there:
        bundle.path.rmdir()
    with pytest.raises(FailedPrecondition, match=text):
        await shim_delete.run(CONFIG, Runner(missing), "/bin/shim", bundle)
