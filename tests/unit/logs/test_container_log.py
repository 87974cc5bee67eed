"""One container's turns, on real FIFOs: what is copied, what stays where, and what a copier that is killed leaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.logs import container_log, fifos
from agent.logs.container_log import CHUNK, ContainerLog, Scratch, Stream
from agent.logs.log_file import LogFile
from tests.unit.logs.toolbox import Shim, contents, records, text, until


class Killed(BaseException):
    """Stands in for a SIGKILL: nothing after it is done."""


class Node:
    """One container's FIFOs and log; `copier()` is a new copier with duplicates of the daemon's read ends."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "0.log"
        self.directory = directory / "io" / "c1"
        fifos.make(self.directory, terminal=False)
        self.held = fifos.open_for_reading(self.directory, terminal=False)
        self.scratch = Scratch()
        self._shims: list[Shim] = []
        self._copiers: list[ContainerLog] = []

    def shim(self) -> Shim:
        self._shims.append(Shim(fifos.stdio(self.directory, terminal=False)))
        return self._shims[-1]

    def copier(self, max_line: int = 16384, *, log: bool = True) -> ContainerLog:
        streams = [Stream(name, os.dup(descriptor), max_line) for name, descriptor in self.held.items()]
        self._copiers.append(ContainerLog("c1", streams, LogFile(str(self.log)) if log else None))
        return self._copiers[-1]

    def waiting(self) -> int:
        """Bytes in the stdout FIFO."""
        stream = Stream("stdout", os.dup(self.held["stdout"]), 1)
        try:
            return stream.available()
        finally:
            os.close(stream.descriptor)

    def close(self) -> None:
        for shim in self._shims:
            shim.close()
        for copier in self._copiers:
            copier.close(self.scratch)
        fifos.close(self.held)
        self.scratch.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def test_both_streams_go_into_one_log(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"to out\n")
    shim.write(b"to err\n", "stderr")
    assert container.turn(node.scratch) is False
    assert [(name, tag, content) for _, name, tag, content in records(node.log.read_bytes())] == [
        ("stdout", "F", b"to out"),
        ("stderr", "F", b"to err"),
    ]
    assert container.copied == 14


def test_before_the_first_writer_nothing_is_at_its_end(node: Node) -> None:
    container = node.copier()
    assert container.turn(node.scratch) is False
    assert not container.ended


def test_without_a_writer_an_exited_container_is_at_its_end(node: Node) -> None:
    container = node.copier()
    future = container.post(container.drain)
    container.turn(node.scratch)
    assert future.done()
    assert container.ended


def test_after_its_last_writer_a_stream_is_at_its_end_and_keeps_its_last_words(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"one\nno newline")
    container.turn(node.scratch)
    assert container.condition == (False, 0)
    shim.close()
    container.turn(node.scratch)
    assert container.condition == (True, 0)
    assert contents(node.log.read_bytes()) == [("F", b"one"), ("P", b"no newline")]


def test_a_writer_that_goes_on_behind_a_look_and_then_hangs_up_has_its_line_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in CI: the part that was seen was taken for the stream's last words, as nobody could write any more."""
    shim, container = node.shim(), node.copier()
    shim.write(b"x" * 100)
    peek = node.scratch.peek

    def slow(descriptor: int) -> bytes:
        chunk = peek(descriptor)
        monkeypatch.setattr(node.scratch, "peek", peek)
        shim.write(b"y" * 100 + b"\n")
        shim.close()
        return chunk

    monkeypatch.setattr(node.scratch, "peek", slow)
    container.turn(node.scratch)
    container.turn(node.scratch)
    assert contents(node.log.read_bytes()) == [("F", b"x" * 100 + b"y" * 100)]
    assert container.ended


def test_a_second_shim_may_take_over(node: Node) -> None:
    container = node.copier()
    for word in (b"one\n", b"two\n"):
        shim = node.shim()
        shim.write(word)
        container.turn(node.scratch)
        assert container.condition == (False, 0)
        shim.close()
        container.turn(node.scratch)
        assert container.condition == (True, 0)
    assert text(node.log.read_bytes()) == b"one\ntwo\n"


def test_an_unfinished_line_stays_in_the_fifo(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"one\ntw")
    container.turn(node.scratch)
    assert node.waiting() == 2
    assert text(node.log.read_bytes()) == b"one\n"
    shim.write(b"o\nthr")
    container.turn(node.scratch)
    assert node.waiting() == 3
    assert text(node.log.read_bytes()) == b"one\ntwo\n"


def test_a_line_that_would_fill_the_fifo_is_held_in_memory(node: Node) -> None:
    shim, container = node.shim(), node.copier(max_line=-1)
    for _ in range(20):
        shim.write(b"x" * 50_000)
        container.turn(node.scratch)
    shim.write(b"\n")
    container.turn(node.scratch)
    assert contents(node.log.read_bytes()) == [("F", b"x" * 1_000_000)]
    assert node.waiting() == 0


def test_lines_over_the_limit_are_cut_and_what_is_cut_leaves_the_fifo(node: Node) -> None:
    shim, container = node.shim(), node.copier(max_line=1000)
    shim.write(b"y" * 2500)
    container.turn(node.scratch)
    assert contents(node.log.read_bytes()) == [("P", b"y" * 1000), ("P", b"y" * 1000)]
    assert node.waiting() == 500


def _splice_single_bytes(reader: int, writer: int, out: int) -> bytes:
    """Until the FIFO is full."""
    filled = b""
    while True:
        os.write(writer, b".")
        try:
            os.splice(reader, out, 1)
        except BlockingIOError:
            os.read(reader, 1)
            return filled
        filled += b"."


def test_a_fifo_full_of_single_bytes_does_not_block_its_writer_for_ever(node: Node) -> None:
    """Each splice takes a slot of the FIFO, however few its bytes: 32 of them, and the writer waits."""
    shim, container = node.shim(), node.copier()
    reader, writer = os.pipe()
    out = os.open(node.directory / "stdout", os.O_WRONLY | os.O_NONBLOCK)
    expected = b""
    try:
        for _ in range(3):
            filled = _splice_single_bytes(reader, writer, out)
            assert filled
            expected += filled
            while container.turn(node.scratch):
                pass
        assert len(expected) > 32
        shim.write(b"\n")
        container.turn(node.scratch)
        assert text(node.log.read_bytes()) == expected + b"\n"
    finally:
        for descriptor in (reader, writer, out):
            os.close(descriptor)


async def test_a_writer_of_which_the_kernel_says_nothing_is_found_at_the_second_look(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"begin")
    container.turn(node.scratch)
    assert not container.overlooked()
    rest = b" and so on\n" * 200_000
    writing = asyncio.create_task(asyncio.to_thread(shim.write_at_once, rest))
    await until(lambda: node.waiting() > 100_000, "the FIFO full")
    assert not container.overlooked()
    assert container.overlooked()
    while not writing.done():
        container.turn(node.scratch)
        assert not container.unfinished
        await asyncio.sleep(0)
    await writing
    container.turn(node.scratch)
    assert text(node.log.read_bytes()) == b"begin" + rest


def test_a_turn_has_a_quota_and_every_stream_gets_its_share(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_log, "QUOTA", 1)
    container = node.copier()
    shim = node.shim()
    lines = (b"z" * 1023 + b"\n") * (2 * CHUNK // 1024)
    shim.write(lines)
    shim.write(lines, "stderr")
    assert container.turn(node.scratch) is True
    log = node.log.read_bytes()
    assert (len(text(log)), len(text(log, "stderr"))) == (CHUNK, CHUNK)
    assert container.turn(node.scratch) is True
    assert container.turn(node.scratch) is False
    assert text(node.log.read_bytes(), "stderr") == lines


def test_without_a_log_everything_is_read_and_discarded(node: Node) -> None:
    shim, container = node.shim(), node.copier(log=False)
    shim.write(b"a" * 100_000)
    container.turn(node.scratch)
    assert (node.waiting(), container.copied) == (0, 100_000)
    shim.close()
    container.turn(node.scratch)
    assert container.ended


def test_closing_copies_what_is_there_also_an_unfinished_line(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"one\ntwo")
    future = container.post(container.close)
    container.turn(node.scratch)
    assert future.done()
    assert contents(node.log.read_bytes()) == [("F", b"one"), ("P", b"two")]
    assert container.ended
    assert container.turn(node.scratch) is False


def test_failed_work_is_told_to_who_posted_it_and_copying_goes_on(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"one\n")
    node.log.mkdir()
    future = container.post(container.reopen)
    container.turn(node.scratch)
    assert isinstance(future.exception(), IsADirectoryError)
    assert container.copied == 4
    assert container.condition == (False, 1)


def test_a_log_that_must_be_opened_and_cant_ends_everything(node: Node) -> None:
    shim, container = node.shim(), node.copier()
    shim.write(b"one\n")
    node.log.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    future = container.post(container.open)
    container.turn(node.scratch)
    assert isinstance(future.exception(), IsADirectoryError)
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert node.waiting() == 4


@pytest.mark.parametrize("at", ["before the write", "after the write"])
@pytest.mark.parametrize("tail", [b"", b"thr"])
def test_a_copier_that_is_killed_loses_nothing_and_doubles_at_most_a_read(
    node: Node, at: str, tail: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = node.shim()
    shim.write(b"one\ntwo\n" + tail)
    real_write = LogFile.write

    def write(log: LogFile, data: bytes) -> None:
        if at == "after the write":
            real_write(log, data)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LogFile, "write", write)
        with pytest.raises(Killed):
            node.copier().turn(node.scratch)
    shim.write(b"four\n")
    node.copier().turn(node.scratch)
    doubled = b"one\ntwo\n" if at == "after the write" else b""
    assert text(node.log.read_bytes()) == doubled + b"one\ntwo\n" + tail + b"four\n"


def test_an_orderly_end_writes_what_is_in_memory_only(node: Node) -> None:
    shim, container = node.shim(), node.copier(max_line=-1)
    shim.write(b"x" * 200_000)
    container.turn(node.scratch)
    shim.write(b"y")
    container.flush()
    shim.write(b"\n")
    node.copier(max_line=-1).turn(node.scratch)
    assert contents(node.log.read_bytes()) == [("P", b"x" * 200_000), ("F", b"y")]
