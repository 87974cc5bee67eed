"""One container in the copier: its FIFOs, its log, and the way from one to the other.

A chunk goes tee -> frame -> write -> consume (decisions.md 26): what the log doesn't have yet is still in the FIFO, of
which the daemon holds an end too. So a copier that is killed loses nothing and doubles at most what it was writing; and an
unfinished line stays in the FIFO as well, unless it could fill it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from agent.linux import libc
from agent.logs.framing import Framer
from agent.logs.log_file import LogFile

CHUNK = 256 << 10
"""Bytes of one read: all of a scratch pipe. Four times what a pipe has by default, which takes a third less CPU with long lines."""
QUOTA = 2
"""Chunks of one stream in one turn."""
_FIFO_SIZE = 2 * CHUNK


class Scratch:
    """A pipe into which FIFOs are duplicated, and /dev/null into which they are consumed. One for each thread."""

    def __init__(self) -> None:
        self._reader, self._writer = _scratch_pipe()
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def renew(self) -> None:
        """Forget what a turn that failed may have left in it: it must not get into another container's log."""
        os.close(self._reader)
        os.close(self._writer)
        self._reader, self._writer = _scratch_pipe()

    def peek(self, descriptor: int) -> bytes:
        """What is in the FIFO, up to `CHUNK`, which leaves it there. Empty: no writer. BlockingIOError: nothing yet."""
        count = libc.tee(descriptor, self._writer, CHUNK, libc.SPLICE_F_NONBLOCK)
        return os.read(self._reader, count) if count else b""

    def consume(self, descriptor: int, count: int) -> None:
        """Take `count` bytes, which are there, from the FIFO."""
        while count:
            count -= os.splice(descriptor, self._null, count)

    def close(self) -> None:
        for descriptor in (self._reader, self._writer, self._null):
            os.close(descriptor)


def _scratch_pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _resize(writer, CHUNK)
    return reader, writer


def _resize(pipe: int, size: int) -> None:
    """Give a pipe room for `size` bytes. Where that isn't allowed (fs.pipe-max-size) it stays as it is, and does, more slowly."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


class Stream:
    """The read end of one FIFO. Owns the descriptor."""

    def __init__(self, name: str, descriptor: int, max_line: int) -> None:
        self.descriptor = descriptor
        self.framer = Framer(name, max_line)
        status = os.fstat(descriptor)
        self.inode = (status.st_dev, status.st_ino)
        self.ended = False
        """Nothing is left to read, and nothing more will come."""
        self.copied = 0
        """Bytes taken from the FIFO."""
        self._poll = select.poll()
        self._poll.register(descriptor, 0)
        # Twice a scratch pipe: when a look shows all there is, half of the FIFO's slots are free (see `_settle`).
        _resize(descriptor, _FIFO_SIZE)
        self.may_stay: int = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) // 4
        """Bytes of an unfinished line that may stay in the FIFO: with pages half full, half of it is still free."""
        self.left = 0
        """Bytes of an unfinished line that do stay there."""
        self._silent = False

    def hung_up(self) -> bool:
        """There was a writer, and there is none now."""
        return bool(self._poll.poll(0))

    def available(self) -> int:
        """Bytes in the FIFO now."""
        count: int = struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
        return count

    def overlooked(self) -> bool:
        """Whether more came behind an unfinished line in the FIFO, and epoll doesn't tell: asked twice, as it may just be late.

        A writer tells when its write is complete, and before it waits for room only if the FIFO was empty at first
        (pipe_write in fs/pipe.c). Shims write 4 KiB (runc's) to 32 KiB, which has room; for who writes more nothing may stay.
        """
        if not self.left or self.available() <= self.left:
            return False
        if self._silent:
            self.may_stay = 0
        self._silent = not self._silent
        return not self._silent

    def looked(self, left: int) -> None:
        """A look at the FIFO is over, and left so many bytes there."""
        self.left, self._silent = left, False

    def close(self) -> None:
        """Idempotent."""
        self.looked(left=0)
        self.ended = True
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


Work = Callable[[Scratch], None]


class ContainerLog:
    """What is done for a container is done in its turns, of which there is never more than one at a time (`Turns`).

    Other threads may look at the counters, and have something done with `post`.
    """

    def __init__(self, container_id: str, streams: list[Stream], log: LogFile | None) -> None:
        self.id = container_id
        self.streams = streams
        self.log = log
        self._draining = False
        self._work: deque[tuple[Work, Future[None]]] = deque()

    @property
    def copied(self) -> int:
        """Bytes taken from all streams."""
        return sum(stream.copied for stream in self.streams)

    @property
    def ended(self) -> bool:
        """All streams are at their end."""
        return all(stream.ended for stream in self.streams)

    @property
    def errors(self) -> int:
        """Writes that failed."""
        return 0 if self.log is None else self.log.errors

    @property
    def condition(self) -> tuple[bool, int]:
        """What others want to hear about: whether it has ended, and its errors."""
        return self.ended, self.errors

    def post(self, work: Work) -> Future[None]:
        """Do `work` in the next turn, before anything is copied; the caller sees to it that there is one."""
        future: Future[None] = Future()
        self._work.append((work, future))
        return future

    def turn(self, scratch: Scratch) -> bool:
        """Do what is posted and copy what is there, up to the quota. True: there is more."""
        while self._work:
            work, future = self._work.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                work(scratch)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)
        more = False
        for stream in self.streams:
            if stream.descriptor >= 0:
                more |= self._copy(stream, scratch)
        return more

    @property
    def unfinished(self) -> bool:
        """An unfinished line is in a FIFO: ask `overlooked` from time to time."""
        return any(stream.left for stream in self.streams)

    def overlooked(self) -> bool:
        """Whether there is something to read of which epoll says nothing. Between turns only."""
        return any(stream.overlooked() for stream in self.streams if stream.descriptor >= 0)

    def open(self, scratch: Scratch) -> None:
        """Work: open the log; if that fails, close everything. Raises OSError."""
        try:
            self.reopen(scratch)
        except OSError:
            self._release()
            raise

    def reopen(self, _scratch: Scratch) -> None:
        """Work: open the log again. Raises OSError; nothing has changed then."""
        if self.log is not None:
            self.log.open()

    def drain(self, _scratch: Scratch) -> None:
        """Work: the container has exited, so a FIFO without a writer is at its end, even if we never saw one."""
        self._draining = True

    def close(self, scratch: Scratch) -> None:
        """Work: copy what is there, with unfinished lines, and close everything. Idempotent."""
        for stream in self.streams:
            if stream.descriptor >= 0:
                self._copy(stream, scratch, final=True)
                self._write(stream.framer.finish(time.time_ns()))
        self._release()

    def flush(self) -> None:
        """Write the unfinished lines that are nowhere but in our memory: the last thing before the process ends in order."""
        for stream in self.streams:
            self._write(stream.framer.finish(time.time_ns()))

    def _release(self) -> None:
        for stream in self.streams:
            stream.close()
        if self.log is not None:
            self.log.close()

    def _copy(self, stream: Stream, scratch: Scratch, *, final: bool = False) -> bool:
        """True: the quota ended it. Otherwise epoll tells when there is more."""
        for _ in range(QUOTA):
            # Asked before the look: who hangs up after it may have written after it as well.
            over = final or stream.hung_up()
            available = stream.available()
            try:
                chunk = scratch.peek(stream.descriptor) if self.log is not None else os.read(stream.descriptor, CHUNK)
            except BlockingIOError:
                return False
            if not chunk:
                stream.looked(0)
                stream.ended = stream.hung_up() or self._draining
                return False
            stream.ended = False
            if self.log is None:
                stream.copied += len(chunk)
            elif not self._settle(stream, chunk, scratch, seen_all=len(chunk) >= available, over=over):
                return False
        return True

    def _settle(self, stream: Stream, chunk: bytes, scratch: Scratch, *, seen_all: bool, over: bool) -> bool:
        """Write the records of `chunk` and consume what needn't be seen again. False: nothing of it.

        `seen_all`: nothing was behind the chunk; `over`: nothing will be. Left in the FIFO is an unfinished line, if the writer
        has room to finish it; otherwise it is held here. Room is short when the line is many bytes, or many slots: who splices
        into a FIFO can fill each of its 128 slots with a single byte. Then a look doesn't show all there is, as the scratch pipe
        has 64.
        """
        framer = stream.framer
        records = framer.feed(chunk, time.time_ns())
        settled = len(chunk)
        if framer.held and seen_all and over:
            records += framer.finish(time.time_ns())
        elif framer.held <= min(settled, stream.may_stay) and (framer.held < settled or seen_all):
            settled -= framer.put_back()
        self._write(records)
        if settled:
            scratch.consume(stream.descriptor, settled)
            stream.copied += settled
        stream.looked(len(chunk) - settled)
        return settled > 0

    def _write(self, records: bytes) -> None:
        if records and self.log is not None:
            self.log.write(records)
