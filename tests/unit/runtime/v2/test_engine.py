"""What engines keep of a container, and stale sockets: looked at and removed by `cleanup`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from agent.errdefs import FailedPrecondition, Unknown
from agent.linux.processes import Command, Completed, Identity
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.engine import Engine
from agent.runtime.v2.records import TaskRecord
from agent.runtime.v2.sockets import Sockets
from tests.unit.runtime.v2.test_shim_binary import Runner, Shim


def engine(shim: Shim = lambda _: Completed(0, b"", b"")) -> tuple[Engine, Runner]:
    runner = Runner(shim)
    return Engine(RuntimeConfig(Path("/r"), Path("/l"), "/a", "/t", "/p", "/shims", "/helpers"), runner), runner


def record(root: Path, *, systemd: bool = False) -> TaskRecord:
    return TaskRecord("c1", "pod", "pod", "/bin/shim", "crun", str(root), systemd, "/pods/c1")


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("state.json", {"init_process_pid": 7, "init_process_start": 8}),
        ("status", {"pid": 7, "process-start-time": 8}),
    ],
    ids=["runc", "crun"],
)
async def test_the_init_by_the_engines_state(tmp_path: Path, name: str, state: dict[str, int]) -> None:
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / name).write_text(json.dumps(state))
    assert await engine()[0].init(record(tmp_path)) == Identity(7, 8)
    assert await engine()[0].has_state(record(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"init_process_pid": -1, "init_process_start": 8}', '{"init_process_pid": "x"}'])
async def test_a_state_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "state.json").write_text(text)
    assert await engine()[0].init(record(tmp_path)) is None


async def test_no_state(tmp_path: Path) -> None:
    assert await engine()[0].init(record(tmp_path)) is None
    assert not await engine()[0].has_state(record(tmp_path))
    await engine()[0].remove_state(record(tmp_path))


async def test_a_shim_that_drives_no_engine_here() -> None:
    other = TaskRecord("c1", "pod", "pod", "/bin/shim", "", "", systemd_cgroup=False, cgroup="")
    assert not await engine()[0].has_state(other)
    assert await engine()[0].init(other) is None
    await engine()[0].remove_state(other)


async def test_remove_state(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "state.json").touch()
    await engine()[0].remove_state(record(tmp_path))
    assert not await engine()[0].has_state(record(tmp_path))


@pytest.mark.parametrize(("systemd", "flags"), [(True, ("--systemd-cgroup",)), (False, ())])
async def test_delete(tmp_path: Path, systemd: bool, flags: tuple[str, ...]) -> None:
    made, runner = engine()
    await made.delete(record(tmp_path, systemd=systemd))
    [command] = runner.commands
    assert command.argv == ("crun", "--root", str(tmp_path), *flags, "delete", "--force", "c1")
    assert command.cgroup == "/helpers"


async def test_delete_that_fails(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="nope"):
        await engine(lambda _: Completed(1, b"", b"nope"))[0].delete(record(tmp_path))


async def test_an_engine_that_is_gone(tmp_path: Path) -> None:
    def missing(command: Command) -> Completed:
        raise FileNotFoundError(2, "No such file or directory", command.argv[0])

    with pytest.raises(FailedPrecondition, match="crun can't be run"):
        await engine(missing)[0].delete(record(tmp_path))


# ---- sockets


async def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    await Sockets().remove_stale(f"unix://{path}")
    assert not path.exists()
    await Sockets().remove_stale(f"unix://{path}")


@pytest.mark.parametrize("backlog", [1, 0])
async def test_a_socket_that_somebody_listens_at(tmp_path: Path, backlog: int) -> None:
    """Also one whose queue is full: the second look finds no room in it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(backlog)
        for _ in range(3):
            await Sockets().remove_stale(str(path))
        assert path.exists()


@pytest.mark.parametrize("address", ["", "vsock://3:1024", "containerd-shim/abstract.sock"])
async def test_addresses_without_a_file(address: str) -> None:
    await Sockets().remove_stale(address)
