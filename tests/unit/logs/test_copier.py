"""The log copier as a process, and its client: no line lost when either is started again, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import errdefs, metrics, timeouts
from agent.linux.processes import Processes
from agent.logs import ContainerState, DrainResult, LogCopier, Stdio, client, protocol
from agent.logs.container_log import CHUNK
from tests.unit.logs.toolbox import Shim, contents, records, size, text, until

REPOSITORY = Path(__file__).parents[3]


class Node:
    """A state directory, the copier process in it, and daemons that come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.socket = self.state / "log-copier.sock"
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.processes = Processes()
        self._daemons: list[LogCopier] = []

    async def daemon(self, max_line: int = 16384) -> LogCopier:
        daemon = LogCopier(self.state, self.processes, max_line=max_line)
        self._daemons.append(daemon)
        await daemon.start()
        return daemon

    def pid(self) -> int:
        """Of the copier that listens; 0: none does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return 0
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)

    def descriptors(self) -> tuple[int, int]:
        """How many FIFOs and logs we have open, and the copier, which closes a moment after it answered."""
        return self._files("self"), self._files(str(self.pid()))

    def _files(self, process: str) -> int:
        count = 0
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(descriptor).startswith(str(self.directory))
        return count

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    async def end_copier(self, number: signal.Signals) -> None:
        process = await self.processes.open(pid) if (pid := self.pid()) else None
        if process is None:
            raise ProcessLookupError
        with process:
            process.kill(number)
            await process.wait()

    async def close(self) -> None:
        for daemon in self._daemons:
            await daemon.stop()
        with contextlib.suppress(ProcessLookupError):  # without a container it ends by itself
            await self.end_copier(signal.SIGTERM)
        await self.processes.stop()


@pytest.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    node = Node(tmp_path_factory.mktemp("n"))  # short: a socket's path has 107 bytes
    yield node
    await node.close()


class Counter(threading.Thread):
    """A container that prints a counter as fast as it can, until `finish`."""

    def __init__(self, stdio: Stdio) -> None:
        super().__init__(daemon=True)
        self._shim = Shim(stdio)
        self._stop_event = threading.Event()
        self.count = 0
        self.start()

    def run(self) -> None:
        while not self._stop_event.is_set():
            self._shim.write(b"".join(b"%d\n" % number for number in range(self.count, self.count + 997)))
            self.count += 997
        self._shim.close()

    async def printed(self, more: int) -> None:
        """Wait until it printed `more` lines from now on."""
        goal = self.count + more
        await until(lambda: self.count >= goal, f"{more} lines more")

    async def finish(self) -> None:
        self._stop_event.set()
        await asyncio.to_thread(self.join)

    def expected(self) -> list[int]:
        return list(range(self.count))


def numbers(*logs: Path) -> list[int]:
    return [int(line) for log in logs for line in text(log.read_bytes()).splitlines()]


async def finish(daemon: LogCopier, container: str) -> DrainResult:
    result = await daemon.drain(container, 20)
    await daemon.close(container)
    await daemon.remove_fifos(container)
    return result


async def test_copies_both_streams_until_the_end(node: Node) -> None:
    daemon = await node.daemon()
    stdio = await daemon.open("c1", node.log("c1"), terminal=False)
    assert stdio == Stdio(str(node.state / "io/c1/stdout"), str(node.state / "io/c1/stderr"))
    shim = Shim(stdio)
    shim.write(b"out\n")
    shim.write(b"err", "stderr")
    shim.close()
    assert await daemon.drain("c1", 20) == DrainResult("eof", bytes=7)
    log = node.log("c1").read_bytes()
    assert sorted((name, tag, content) for _, name, tag, content in records(log)) == [("stderr", "P", b"err"), ("stdout", "F", b"out")]
    assert node.log("c1").stat().st_mode & 0o777 == 0o640
    await finish(daemon, "c1")


async def test_a_terminal_has_one_stream(node: Node) -> None:
    daemon = await node.daemon()
    stdio = await daemon.open("c1", node.log("c1"), terminal=True)
    assert stdio.stderr == ""
    assert os.listdir(node.state / "io/c1") == ["stdout"]
    shim = Shim(stdio)
    shim.write(b"out\r\n")
    shim.close()
    assert (await finish(daemon, "c1")).result == "eof"
    assert contents(node.log("c1").read_bytes()) == [("F", b"out")]


async def test_without_a_log_path_everything_is_read(node: Node) -> None:
    daemon = await node.daemon()
    counter = Counter(await daemon.open("c1", None, terminal=False))
    await counter.printed(50_000)
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"


@pytest.mark.parametrize("max_line", [16384, -1])
async def test_lines_of_a_megabyte(node: Node, max_line: int) -> None:
    daemon = await node.daemon(max_line)
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    line = b"m" * (1 << 20)
    await asyncio.to_thread(shim.write, (line + b"\n") * 3)
    shim.close()
    await finish(daemon, "c1")
    log = node.log("c1").read_bytes()
    assert text(log) == (line + b"\n") * 3
    assert [tag for tag, _ in contents(log)] == (["F"] if max_line < 0 else ["P"] * 63 + ["F"]) * 3


async def test_nothing_is_left_of_a_container(node: Node) -> None:
    daemon = await node.daemon()
    await daemon.open("c0", node.log("c0"), terminal=False)
    before = node.descriptors()
    for _ in range(3):
        Shim(await daemon.open("c1", node.log("c1"), terminal=False)).close()
        await finish(daemon, "c1")
        await finish(daemon, "c1")  # all of it is idempotent
    await until(lambda: node.descriptors() == before, "descriptors closed")
    assert await daemon.fifo_owners() == ["c0"]
    assert [state.id for state in await daemon.containers()] == ["c0"]


async def test_open_again_is_the_same(node: Node) -> None:
    daemon = await node.daemon()
    stdio = await daemon.open("c1", node.log("c1"), terminal=False)
    shim = Shim(stdio)
    shim.write(b"one\n")
    assert await daemon.open("c1", node.log("c1"), terminal=False) == stdio
    shim.write(b"two\n")
    shim.close()
    await finish(daemon, "c1")
    assert text(node.log("c1").read_bytes()) == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("prepare", "error", "sentence"),
    [
        pytest.param(lambda log: log.parent.rmdir(), errdefs.NotFound, "its directory .* doesn't exist", id="no log directory"),
        pytest.param(lambda log: log.symlink_to("/etc/passwd"), errdefs.InvalidArgument, "symbolic link", id="a symbolic link"),
        pytest.param(lambda log: log.mkdir(), errdefs.InvalidArgument, "Is a directory", id="a directory"),
    ],
)
async def test_a_log_that_cant_be_opened_is_refused_and_nothing_is_left(
    node: Node, prepare: object, error: type[Exception], sentence: str
) -> None:
    daemon = await node.daemon()
    assert callable(prepare)
    prepare(node.log("c1"))
    before = node.descriptors()
    with pytest.raises(error, match=sentence):
        await daemon.open("c1", node.log("c1"), terminal=False)
    assert os.listdir(node.state / "io") == []
    await until(lambda: node.descriptors() == before, "descriptors closed")
    assert await daemon.containers() == []


@pytest.mark.parametrize("container", ["", "../c1", "a/b", "x" * 200])
async def test_hostile_ids_are_refused(node: Node, container: str) -> None:
    daemon = await node.daemon()
    with pytest.raises(errdefs.InvalidArgument):
        await daemon.open(container, None, terminal=False)
    with pytest.raises(errdefs.InvalidArgument):
        await daemon.remove_fifos(container)


async def test_what_is_unknown(node: Node) -> None:
    daemon = await node.daemon()
    with pytest.raises(errdefs.NotFound, match="no container c1"):
        await daemon.reopen("c1")
    with pytest.raises(errdefs.NotFound, match="FIFOs of container c1 are gone"):
        await daemon.adopt("c1", None, terminal=False)
    assert (await daemon.drain("c1", 1)).result == "error"
    await daemon.close("c1")
    await daemon.remove_fifos("c1")


async def test_drain_has_a_budget(node: Node) -> None:
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    shim.write(b"a child holds the pipe\nand")
    assert await daemon.drain("c1", 0.05) == DrainResult("timeout", bytes=23)
    await daemon.close("c1")
    assert contents(node.log("c1").read_bytes()) == [("F", b"a child holds the pipe"), ("P", b"and")]
    shim.close()


async def test_a_container_that_never_started_drains_at_once(node: Node) -> None:
    daemon = await node.daemon()
    await daemon.open("c1", node.log("c1"), terminal=False)
    assert await finish(daemon, "c1") == DrainResult("eof")


async def test_many_containers_are_listed(node: Node) -> None:
    daemon = await node.daemon()
    ids = [f"c{number:03d}" for number in range(protocol.PAGE + 3)]
    for container in ids:
        await daemon.open(container, None, terminal=True)
    assert [state.id for state in await daemon.containers()] == ids
    assert (await daemon.containers())[0] == ContainerState("c000", None, ended=False, bytes=0, errors=0, dropped=0)


async def test_the_daemon_is_started_again_under_load(node: Node) -> None:
    daemon = await node.daemon()
    pid = node.pid()
    counter = Counter(await daemon.open("c1", node.log("c1"), terminal=False))
    gone = Shim(await daemon.open("gone", node.log("gone"), terminal=False))
    await counter.printed(20_000)
    await daemon.stop()
    gone.write(b"last words\n")
    gone.close()
    await counter.printed(20_000)

    daemon = await node.daemon()
    assert node.pid() == pid
    assert [state.id for state in await daemon.containers()] == ["c1", "gone"]
    for container in ("c1", "gone"):
        await daemon.adopt(container, node.log(container), terminal=False)
    await counter.printed(20_000)
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"
    assert (await finish(daemon, "gone")).result == "eof"
    assert numbers(node.log("c1")) == counter.expected()
    assert text(node.log("gone").read_bytes()) == b"last words\n"


async def test_the_copier_is_started_again_in_order_under_load(node: Node) -> None:
    daemon = await node.daemon()
    counter = Counter(await daemon.open("c1", node.log("c1"), terminal=False))
    for _ in range(3):
        await counter.printed(20_000)
        before = node.pid()
        await node.end_copier(signal.SIGTERM)
        await until(lambda before=before: node.pid() not in (0, before), "another copier")  # type: ignore[misc]  # bound now
    await counter.printed(20_000)
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"
    assert numbers(node.log("c1")) == counter.expected()


async def test_a_long_line_survives_an_orderly_end_of_the_copier(node: Node) -> None:
    daemon = await node.daemon(max_line=-1)
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    shim.write(b"x" * 200_000)
    while (await daemon.containers())[0].bytes < 200_000:  # it is too much to stay in the FIFO
        pass
    await node.end_copier(signal.SIGTERM)
    shim.write(b"y\n")
    shim.close()
    await finish(daemon, "c1")
    assert text(node.log("c1").read_bytes()) == b"x" * 200_000 + b"y\n"


async def test_a_killed_copier_loses_nothing_and_doubles_at_most_a_read(node: Node) -> None:
    daemon = await node.daemon()
    counter = Counter(await daemon.open("c1", node.log("c1"), terminal=False))
    kills = 5
    for _ in range(kills):
        await until(lambda: node.pid() > 0, "a copier")
        await counter.printed(20_000)
        await node.end_copier(signal.SIGKILL)
    await counter.printed(20_000)
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"

    # A write that the kill cut off leaves a torn record: the start of one that follows whole.
    log = node.log("c1").read_bytes().split(b"\n")[:-1]
    whole = re.compile(rb"\S{20,} stdout F (\d+)")
    found = [int(match[1]) for line in log if (match := whole.fullmatch(line))]
    assert len(log) - len(found) <= kills
    assert sorted(set(found)) == counter.expected()
    jumps = [number for number, following in itertools.pairwise(found) if following != number + 1]
    assert len(jumps) <= 2 * kills  # back to what was read and not consumed, and at a torn record that looks whole
    assert len(found) - counter.count <= kills * CHUNK


async def test_with_the_copier_down_a_containers_last_words_wait(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RETRY_DELAYS", (0.05,))
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    started = metrics.registry.get_sample_value("orlop_log_copier_starts_total") or 0.0
    await node.end_copier(signal.SIGKILL)
    lines = b"".join(b"%d\n" % number for number in range(201))
    shim.write(lines)
    shim.close()
    assert await finish(daemon, "c1") == DrainResult("eof", bytes=len(lines))
    assert text(node.log("c1").read_bytes()) == lines
    assert metrics.registry.get_sample_value("orlop_log_copier_starts_total") == started + 1


async def test_reopen_under_load(node: Node) -> None:
    daemon = await node.daemon()
    counter = Counter(await daemon.open("c1", node.log("c1"), terminal=False))
    rotated = []
    for number in range(5):
        await counter.printed(10_000)
        rotated.append(node.log("c1").rename(node.log(f"c1-{number}")))
        await daemon.reopen("c1")
        assert node.log("c1").exists()
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"
    assert numbers(*rotated, node.log("c1")) == counter.expected()


async def test_a_reopen_that_fails_changes_nothing(node: Node) -> None:
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    rotated = node.log("c1").rename(node.log("rotated"))
    node.log("c1").symlink_to("/dev/null")
    before = node.descriptors()
    with pytest.raises(errdefs.InvalidArgument, match="symbolic link"):
        await daemon.reopen("c1")
    await until(lambda: node.descriptors() == before, "descriptors closed")
    shim.write(b"one\n")
    await until(lambda: size(rotated) > 0, "written to the old file")
    node.log("c1").unlink()
    await daemon.reopen("c1")
    shim.write(b"two\n")
    shim.close()
    await finish(daemon, "c1")
    assert text(node.log("c1").read_bytes()) == b"two\n"


async def test_a_full_disk_doesnt_block_the_container_and_is_reported(node: Node) -> None:
    daemon = await node.daemon()
    counted = metrics.registry.get_sample_value("orlop_log_write_errors_total") or 0.0
    counter = Counter(await daemon.open("c1", Path("/dev/full"), terminal=False))
    await counter.printed(20_000)
    await counter.finish()
    result = await daemon.drain("c1", 20)
    assert result.result == "error"
    assert result.dropped > result.bytes > 0
    (state,) = await daemon.containers()
    await daemon.close("c1")
    assert state.errors > 0
    assert metrics.registry.get_sample_value("orlop_log_write_errors_total") == counted + state.errors


async def test_write_errors_are_reported_while_they_last(node: Node) -> None:
    daemon = await node.daemon()
    counted = metrics.registry.get_sample_value("orlop_log_write_errors_total") or 0.0
    shim = Shim(await daemon.open("c1", Path("/dev/full"), terminal=False))
    shim.write(b"one\n")
    await until(lambda: metrics.registry.get_sample_value("orlop_log_write_errors_total") == counted + 1, "the error counted")
    shim.close()
    await finish(daemon, "c1")


async def test_a_log_that_hangs_stops_nobody_else(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody reads takes 64 KiB and then no more, as a file system whose server is gone."""
    daemon = await node.daemon()
    os.mkfifo(node.log("stuck"))
    stuck = Shim(await daemon.open("stuck", node.log("stuck"), terminal=True))
    writing = asyncio.create_task(asyncio.to_thread(stuck.write, b"stuck\n" * 50_000))
    counter = Counter(await daemon.open("c1", node.log("c1"), terminal=False))
    await counter.printed(50_000)
    await counter.finish()
    assert (await finish(daemon, "c1")).result == "eof"
    assert numbers(node.log("c1")) == counter.expected()

    assert (await daemon.drain("stuck", 0.05)).result == "timeout"
    with monkeypatch.context() as patch:
        patch.setattr(timeouts, "LOG_COPIER_CALL", 0.05)
        with pytest.raises(errdefs.DeadlineExceeded, match="log copier: reopen stuck"):
            await daemon.reopen("stuck")

    with node.log("stuck").open("rb", buffering=0) as healed:
        reading = asyncio.create_task(asyncio.to_thread(healed.readall))
        await writing
        stuck.close()
        assert (await daemon.drain("stuck", 20)).result == "eof"
        await daemon.close("stuck")
        assert text(await reading) == b"stuck\n" * 50_000


async def test_closing_a_log_that_hangs_is_confirmed_once_it_doesnt(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = await node.daemon()
    os.mkfifo(node.log("stuck"))
    shim = Shim(await daemon.open("stuck", node.log("stuck"), terminal=True))
    shim.write(b"stuck\n" * 5000)
    shim.close()
    with monkeypatch.context() as patch:
        patch.setattr(timeouts, "LOG_COPIER_CALL", 0.05)
        with pytest.raises(errdefs.DeadlineExceeded, match="log copier: close stuck"):
            await daemon.close("stuck")
    assert [state.id for state in await daemon.containers()] == ["stuck"]

    with node.log("stuck").open("rb", buffering=0) as healed:
        reading = asyncio.create_task(asyncio.to_thread(healed.readall))
        await daemon.close("stuck")
        assert text(await reading) == b"stuck\n" * 5000
    assert await daemon.containers() == []


async def test_an_adopted_container_whose_log_cant_be_opened_is_read_all_the_same(node: Node) -> None:
    daemon = await node.daemon()
    path = node.log("pod/c1")
    path.parent.mkdir()
    counter = Counter(await daemon.open("c1", path, terminal=False))
    await counter.printed(1000)
    path.unlink()
    path.parent.rmdir()
    await node.end_copier(signal.SIGKILL)
    await counter.printed(50_000)
    await counter.finish()
    result = await finish(daemon, "c1")
    assert result.result == "error"
    assert result.dropped > 0


async def test_a_mute_copier_is_replaced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "LOG_COPIER_PING", 0.2)
    monkeypatch.setattr(client, "_HEARTBEAT", 0.05)
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    pid = node.pid()
    os.kill(pid, signal.SIGSTOP)
    shim.write(b"one\n")
    shim.close()
    assert (await finish(daemon, "c1")).result == "eof"
    assert text(node.log("c1").read_bytes()) == b"one\n"
    assert node.pid() not in (0, pid)
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the mute one")


async def test_a_copier_of_another_version_is_replaced_in_order(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    shim.write(b"one\n")
    pid = node.pid()
    await daemon.stop()
    monkeypatch.setattr(protocol, "VERSION", "next")
    daemon = await node.daemon()
    assert node.pid() not in (0, pid)
    await daemon.adopt("c1", node.log("c1"), terminal=False)
    shim.write(b"two\n")
    shim.close()
    await finish(daemon, "c1")
    assert text(node.log("c1").read_bytes()) == b"one\ntwo\n"


async def test_without_container_and_daemon_the_copier_ends(node: Node) -> None:
    daemon = await node.daemon()
    process = await node.processes.open(node.pid())
    assert process is not None
    with process:
        await daemon.open("c1", node.log("c1"), terminal=False)
        await finish(daemon, "c1")
        await daemon.stop()
        async with asyncio.timeout(20):
            await process.wait()
    assert not node.socket.exists()


async def test_with_a_container_the_copier_outlives_the_daemon(node: Node) -> None:
    daemon = await node.daemon()
    shim = Shim(await daemon.open("c1", node.log("c1"), terminal=False))
    await daemon.stop()
    shim.write(b"one\n")
    await until(lambda: size(node.log("c1")) > 0, "copied without a daemon")
    shim.close()
    daemon = await node.daemon()
    assert (await finish(daemon, "c1")).result == "eof"


async def test_a_cancelled_open_is_done_or_undone_but_not_in_between(node: Node) -> None:
    daemon = await node.daemon()
    opening = asyncio.create_task(daemon.open("c1", node.log("c1"), terminal=False))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await daemon.close("c1")  # waits for its turn
    await daemon.remove_fifos("c1")
    assert os.listdir(node.state / "io") == []
    assert await daemon.containers() == []


async def test_a_second_copier_refuses(node: Node) -> None:
    await node.daemon()
    command = (sys.executable, "-m", "agent.logs.copier", "--socket", str(node.socket))
    done = await asyncio.to_thread(subprocess.run, command, cwd=REPOSITORY, capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert b"another log copier serves" in done.stderr


async def test_a_copier_that_cant_start_is_reported_and_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "LOG_COPIER_START", 1.0)
    monkeypatch.setattr(client, "_RETRY_DELAYS", (0.0, 0.1))
    node.socket.mkdir(parents=True)
    with pytest.raises(errdefs.Unavailable, match="tried again"):
        await node.daemon()
    node.socket.rmdir()
    await until(lambda: node.pid() > 0, "a copier")


@pytest.mark.parametrize(
    "packet",
    [b"garbage", b"[]", b'{"seq":1}', b'{"seq":1,"op":"dance"}', b'{"seq":1,"op":"open","id":"c1","streams":["stdout"],"path":null}'],
)
async def test_a_client_that_talks_nonsense_hurts_nobody(node: Node, packet: bytes) -> None:
    daemon = await node.daemon()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(str(node.socket))
        stranger.send(packet)
        answer = await asyncio.to_thread(stranger.recv, protocol.PACKET)
        assert answer == b"" or "code" in protocol.decode(answer)
    assert await daemon.containers() == []
