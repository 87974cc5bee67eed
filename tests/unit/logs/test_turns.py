"""The copier's threads: who gets turns, and what a log that hangs does to the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.logs import fifos
from agent.logs.container_log import ContainerLog, Scratch, Stream
from agent.logs.log_file import LogFile
from agent.logs.turns import Turns
from tests.unit.logs.toolbox import Shim, text


class HangingLog(LogFile):
    """A log on a file system that hangs until `heal`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.healthy = threading.Event()
        self.hangs = threading.Event()

    def write(self, records: bytes) -> None:
        if not self.healthy.is_set():
            self.hangs.set()
            assert self.healthy.wait(20)
        super().write(records)


class Node:
    """Containers with FIFOs, logs and shims; ends of streams are waited for, as everything is copied then."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.changed = threading.Condition()
        self.turns = Turns(self._on_change)
        self.turns.start()
        self.containers: list[ContainerLog] = []
        self._held: list[dict[str, int]] = []
        self._shims: list[Shim] = []

    def _on_change(self, _container: ContainerLog) -> None:
        with self.changed:
            self.changed.notify_all()

    def add(self, name: str, log: Callable[[str], LogFile] = LogFile) -> tuple[ContainerLog, Shim]:
        directory = self.directory / name
        fifos.make(directory, terminal=True)
        held = fifos.open_for_reading(directory, terminal=True)
        self._held.append(held)
        streams = [Stream(stream, os.dup(descriptor), 16384) for stream, descriptor in held.items()]
        container = ContainerLog(name, streams, log(str(self.log(name))))
        self.containers.append(container)
        self.turns.watch(container)
        self._shims.append(Shim(fifos.stdio(directory, terminal=True)))
        return container, self._shims[-1]

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def wait_ended(self, container: ContainerLog) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: container.ended, 20), "the container's streams are not at their end"

    def close(self) -> None:
        for shim in self._shims:
            shim.close()
        for container in self.containers:
            if isinstance(container.log, HangingLog):
                container.log.healthy.set()
        assert len(self.turns.stop(20)) == len(self.containers)
        for container in self.containers:
            container.close(Scratch())
        for held in self._held:
            fifos.close(held)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def _hanging(container: ContainerLog) -> HangingLog:
    assert isinstance(container.log, HangingLog)
    return container.log


def test_everything_written_is_copied_and_the_end_is_told(node: Node) -> None:
    container, shim = node.add("a")
    lines = b"".join(b"%d\n" % number for number in range(100_000))
    shim.write(lines)
    shim.close()
    node.wait_ended(container)
    assert text(node.log("a").read_bytes()) == lines


def test_a_writer_that_waits_for_room_behind_an_unfinished_line_is_found(node: Node) -> None:
    """The kernel doesn't tell of such a write before it is complete, and it never is."""
    container, shim = node.add("a")
    shim.write(b"begin")
    rest = b", 3 bytes off every page\n" * 100_000
    shim.write_at_once(rest)
    shim.close()
    node.wait_ended(container)
    assert text(node.log("a").read_bytes()) == b"begin" + rest


def test_logs_that_hang_delay_nobody_else_and_lose_nothing(node: Node) -> None:
    stuck = [node.add(f"stuck{number}", HangingLog) for number in range(3)]
    for _, shim in stuck:
        shim.write(b"one\n")
    assert _hanging(stuck[0][0]).hangs.wait(20)
    container, shim = node.add("healthy")
    shim.write(b"fine\n" * 100_000)
    shim.close()
    node.wait_ended(container)
    assert text(node.log("healthy").read_bytes()) == b"fine\n" * 100_000

    for container, shim in stuck:
        assert not node.log(container.id).exists()
        shim.write(b"two\n")
        shim.close()
        _hanging(container).healthy.set()
        node.wait_ended(container)
        assert text(node.log(container.id).read_bytes()) == b"one\ntwo\n"


def test_a_container_whose_log_was_slow_gets_its_next_turn_apart(node: Node) -> None:
    container, shim = node.add("slow", HangingLog)
    shim.write(b"one\n")
    log = _hanging(container)
    assert log.hangs.wait(20)
    other, other_shim = node.add("other")
    other_shim.write(b"fine\n")
    other_shim.close()
    node.wait_ended(other)  # so it was found stuck, and another thread is active now

    threads: list[int] = []
    log.healthy.set()
    node.turns.post(container, lambda _: threads.append(threading.get_ident())).result(20)
    node.turns.post(other, lambda _: threads.append(threading.get_ident())).result(20)
    assert threads[0] != threads[1]


def test_what_is_posted_to_a_container_that_hangs_is_done_when_it_doesnt(node: Node) -> None:
    container, shim = node.add("stuck", HangingLog)
    shim.write(b"one\n")
    log = _hanging(container)
    assert log.hangs.wait(20)
    future = node.turns.post(container, container.reopen)
    abandoned = node.turns.post(container, lambda _: pytest.fail("was cancelled"))
    assert abandoned.cancel()
    assert not future.done()
    log.healthy.set()
    assert future.result(20) is None


def test_a_turn_that_fails_ends_nothing_else(node: Node) -> None:
    class BrokenLog(LogFile):
        writes = 0

        def write(self, records: bytes) -> None:
            self.writes += 1
            if self.writes == 1:
                raise RuntimeError("broken")
            super().write(records)

    broken, broken_shim = node.add("broken", BrokenLog)
    broken_shim.write(b"one\n")
    container, shim = node.add("healthy")
    shim.write(b"fine\n")
    shim.close()
    node.wait_ended(container)
    assert text(node.log("healthy").read_bytes()) == b"fine\n"
    broken_shim.write(b"two\n")
    broken_shim.close()
    node.wait_ended(broken)
    assert text(node.log("broken").read_bytes()) == b"one\ntwo\n"


def test_what_a_failed_turn_left_behind_gets_into_no_other_log(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, victim_shim = node.add("victim")
    container, shim = node.add("a")
    real_read = os.read

    def read(descriptor: int, count: int) -> bytes:
        monkeypatch.setattr(os, "read", real_read)
        raise MemoryError

    monkeypatch.setattr(os, "read", read)
    shim.write(b"secret\n")
    failed = threading.Event()
    while not failed.wait(0.001):
        node.turns.post(victim, lambda _: failed.set() if os.read is real_read else None).result(20)
    victim_shim.write(b"fine\n")
    victim_shim.close()
    node.wait_ended(victim)
    assert text(node.log("victim").read_bytes()) == b"fine\n"
    shim.close()
    node.wait_ended(container)
    assert text(node.log("a").read_bytes()) == b"secret\n"


def test_an_unwatched_container_is_not_copied_but_does_what_is_posted(node: Node) -> None:
    container, shim = node.add("a")
    registered = Path(f"/proc/self/fdinfo/{node.turns._epoll.fileno()}")
    assert registered.read_text().count("tfd:") == 2  # its FIFO, and what wakes the thread
    node.turns.unwatch(container)
    node.turns.unwatch(container)
    assert registered.read_text().count("tfd:") == 1
    shim.write(b"one\n")
    node.turns.post(container, container.close).result(20)
    assert text(node.log("a").read_bytes()) == b"one\n"


def test_stopping_leaves_out_what_hangs(tmp_path: Path) -> None:
    node = Node(tmp_path)
    stuck, shim = node.add("stuck", HangingLog)
    healthy, _ = node.add("healthy")
    shim.write(b"one\n")
    assert _hanging(stuck).hangs.wait(20)
    assert node.turns.stop(0.01) == [healthy]
    node.close()
