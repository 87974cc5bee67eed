"""Children of ours: how one is started into its cgroup, fed, read, and reaped. Used by `agent.linux.processes` alone.

`spawn` blocks and runs in a thread; a `Child` lives on the event loop. Whoever has a `Child` ends it with `reap()` (after
its exit), `reaped()` (waits for that) or `release()` (it lives on without us).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.aio import in_thread
from agent.linux import cgroupfs, files
from agent.linux.procfs import Identity, parse_stat

OUTPUT_LIMIT = 1 << 20
"""Bytes kept of each output stream of a child; what it writes beyond that is read and dropped, so that it doesn't block."""
_CHUNK = 1 << 16  # the size of a pipe

# The shell waits until we have put it into its cgroup, and only then becomes the command: nothing of the child ever runs
# outside of it, and the kernel's errno for a refused move is ours to report. If we die first, it reads end of file and exits.
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")


@dataclass(frozen=True)
class Command:
    """A child to start."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    stdin: bytes = b""
    budget: float = 30
    """Seconds until `Processes.run` kills it."""
    cgroup: str = ""
    """Path relative to each hierarchy; the child is in it before it executes anything. Empty: ours."""
    pass_fds: tuple[int, ...] = ()

    def __str__(self) -> str:
        text = " ".join(self.argv)
        return text if len(text) <= 200 else f"{text[:200]}..."


@dataclass(frozen=True)
class Completed:
    """A child that ended."""

    returncode: int
    """The exit status, or the negative number of the signal that ended it."""
    stdout: bytes
    stderr: bytes


def spawn(command: Command, *, piped: bool, proc: Path, cgroup_root: Path) -> Child:
    """Start `command` in a session of its own; blocks. `piped`: stdin, stdout and stderr are ours, else only stderr is, as it is.

    Raises:
        OSError: no such executable or directory, no right to it, or its cgroup doesn't exist or doesn't take it.
    """
    argv = command.argv
    if command.cgroup:
        _require_executable(command)
        argv = (*_GATE, *argv)
    popen = subprocess.Popen(
        argv,
        bufsize=0,
        cwd=command.cwd,
        env=command.env,
        pass_fds=command.pass_fds,
        start_new_session=True,
        stdin=subprocess.PIPE if command.cgroup or (piped and command.stdin) else subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
        stderr=subprocess.PIPE if piped else None,
    )
    pidfd = -1
    try:
        pidfd = os.pidfd_open(popen.pid)
        start_time = parse_stat(files.read(f"{proc}/{popen.pid}/stat")).start_time
        if command.cgroup and popen.stdin is not None:
            cgroupfs.enter(cgroup_root, command.cgroup, popen.pid)
            popen.stdin.write(b"\n")
            if not piped:
                popen.stdin.close()
        return Child(popen, pidfd, Identity(popen.pid, start_time))
    except BaseException:
        popen.kill()
        with popen:  # closes the pipes and waits
            if pidfd >= 0:
                os.close(pidfd)
        raise


def _require_executable(command: Command) -> None:
    """What Popen finds out itself when no shell stands in between."""
    name = command.argv[0]
    path = str(command.cwd / name) if "/" in name else name
    if shutil.which(path, path=command.env.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(errno.ENOENT, "no such executable", name)


async def readable(descriptor: int) -> None:
    """Return when `descriptor` is readable; for a pidfd that is the exit. One waiter per descriptor."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


def is_readable(descriptor: int) -> bool:
    """Whether `descriptor` is readable now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Child:
    """A running child, its pidfd and our ends of its pipes."""

    def __init__(self, popen: subprocess.Popen[bytes], pidfd: int, identity: Identity) -> None:
        self.identity = identity
        self.pidfd = pidfd
        self._popen = popen
        self._reaping = False
        self._outputs = [_Output(pipe) for pipe in (popen.stdout, popen.stderr) if pipe is not None]

    async def exchange(self, stdin: bytes) -> tuple[bytes, ...]:
        """Feed the child and read it until it exits; what it wrote to stdout and stderr, up to `OUTPUT_LIMIT` of each."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as attached:
            for output in self._outputs:
                output.attach(loop)
                attached.callback(output.detach, loop)
            if (pipe := self._popen.stdin) is not None:
                feed = _Feed(pipe, stdin)
                feed.attach(loop)
                attached.callback(feed.detach, loop)
            await readable(self.pidfd)
        return tuple(output.rest() for output in self._outputs)

    @property
    def released(self) -> bool:
        """Whether it isn't ours any more, or won't be in a moment."""
        return self.pidfd < 0 or self._reaping

    def kill(self) -> None:
        """SIGKILL to the process group of a child that isn't released: until it is reaped, the number is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.identity.pid, signal.SIGKILL)

    async def reaped(self) -> int:
        """Wait for the exit, then `reap()`; if the waiting is cancelled the child lives on without us."""
        try:
            await readable(self.pidfd)
        except BaseException:
            self.release()
            raise
        return await self.reap()

    async def status(self) -> int:
        """How the child, which has exited, ended, as `Completed.returncode`. Its pipes are closed; `reap()` has still to follow.

        Raises:
            ChildProcessError: somebody else reaped it, or SIGCHLD is ignored; Popen would call that a success.
        """
        self._popen.returncode = await in_thread(self._wait, os.WNOWAIT)
        self._close_pipes()
        return self._popen.returncode

    async def reap(self) -> int:
        """As `status()`, and the end of the child: its pidfd and pipes are closed.

        In a thread: of a CNI plugin, whose threads were in other network namespaces, the kernel may take 20 ms to bury it. A caller
        that is cancelled waits for that, or a child would be left, and a descriptor.
        """
        self._reaping = True
        burial = asyncio.get_running_loop().run_in_executor(None, self._reap)
        try:
            return await asyncio.shield(burial)
        except asyncio.CancelledError:
            with contextlib.suppress(ChildProcessError):
                await asyncio.shield(burial)
            raise

    def _reap(self) -> int:
        try:
            self._popen.returncode = self._wait()
            return self._popen.returncode
        finally:
            self.release()

    def _wait(self, options: int = 0) -> int:
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | options)
        assert result is not None  # that is an answer to WNOHANG only
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def release(self) -> None:
        """Close what we have of the child and forget it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self._close_pipes()
        if self._popen.returncode is None:
            self._popen.returncode = 0  # or Popen would warn about, and later reap, a child that is to outlive us

    def _close_pipes(self) -> None:
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()


class _Output:
    """Our end of a child's stdout or stderr: reads what is there, keeps the beginning."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._descriptor = pipe.fileno()
        self._kept = bytearray()
        os.set_blocking(self._descriptor, False)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._descriptor, self._read_on, loop)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._descriptor)

    def rest(self) -> bytes:
        """All that is kept, with what the pipe holds at this moment. A grandchild that goes on writing can't hold us here."""
        with contextlib.suppress(BlockingIOError):
            while len(self._kept) < OUTPUT_LIMIT and self._read():
                pass
        return bytes(self._kept)

    def _read_on(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._read():
                self.detach(loop)

    def _read(self) -> bool:
        """Read once; False at end of file. Raises BlockingIOError when the pipe is empty."""
        chunk = os.read(self._descriptor, _CHUNK)
        self._kept += chunk[: OUTPUT_LIMIT - len(self._kept)]
        return bool(chunk)


class _Feed:
    """Our end of a child's stdin: written as the child takes it, then closed."""

    def __init__(self, pipe: IO[bytes], data: bytes) -> None:
        self._pipe = pipe
        self._rest = memoryview(data)
        os.set_blocking(pipe.fileno(), False)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_writer(self._pipe.fileno(), self._write, loop)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._pipe.closed:
            loop.remove_writer(self._pipe.fileno())
            self._pipe.close()

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._rest = self._rest[os.write(self._pipe.fileno(), self._rest) :] if self._rest else self._rest
        except BlockingIOError:
            return
        except BrokenPipeError:  # it doesn't want any more
            self._rest = self._rest[:0]
        if not self._rest:
            self.detach(loop)
