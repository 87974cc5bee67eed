"""Processes: held by pidfd, never by number alone, and children that are started and awaited off the event loop.

`Processes.run` is for helpers (shim start and delete, CNI plugins, engines), `Processes.start` for what outlives us (the
log copier), `Processes.open` for everything else: shims, container inits, leaked `runc init`s. Callers own the `Process`
they get and close it.

Children come from `subprocess.Popen` in a thread (vfork, no `preexec_fn`) and end by their pidfd, not by end of file on
their pipes: a shim inherits those from its start helper and keeps them for life.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from pathlib import Path
from types import TracebackType

from agent.aio import Supervisor, in_thread, within
from agent.errdefs import DeadlineExceeded
from agent.linux import files, procfs
from agent.linux.children import Child, Command, Completed, is_readable, readable, spawn
from agent.linux.procfs import Identity, ProcessInfo, Stat

__all__ = ["Command", "Completed", "Identity", "Process", "ProcessInfo", "Processes", "open_pidfd"]

KILL_GRACE = 5.0
"""Seconds from SIGKILL until we stop waiting for a child. One in an uninterruptible sleep is reaped in the background."""


class Process:
    """A process that we hold by its pidfd: the number can't come to mean another one. Owned by who got it; `close()` it."""

    def __init__(self, identity: Identity, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd

    @property
    def pid(self) -> int:
        return self.identity.pid

    def alive(self) -> bool:
        """Whether it has not exited; a zombie has."""
        return not is_readable(self._descriptor())

    async def wait(self) -> None:
        """Return when the process has exited, child of ours or not; several tasks may wait."""
        # A descriptor of its own per waiter: the loop takes one reader for each, and close() must not pull it away.
        descriptor = os.dup(self._descriptor())
        try:
            await readable(descriptor)
        finally:
            os.close(descriptor)

    def kill(self, signal_number: int) -> None:
        """Send a signal; nothing happens if the process is gone. Raises PermissionError."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor(), signal_number)

    def close(self) -> None:
        """Give the pidfd back. The process is left alone."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _descriptor(self) -> int:
        if self._pidfd < 0:
            raise ValueError(f"{self!r} was closed")
        return self._pidfd

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Process {self.identity.pid}, started at {self.identity.start_time}>"


class Processes:
    """Starts, finds and lists processes. `proc` and `cgroup_root` are other places in tests only."""

    def __init__(self, proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroup_root = cgroup_root
        self._supervisor = Supervisor("processes")

    async def open(self, pid: int, start_time: int | None = None) -> Process | None:
        """Hold process `pid`, if it is the one that started at `start_time` (clock ticks since boot; None: whichever it is).

        None: gone, a zombie, or the number belongs to another process by now.
        """
        pidfd = open_pidfd(pid)
        if pidfd is None:
            return None
        try:
            stat = await in_thread(self._stat, pid)
            # In this order: if the pidfd still lives now, what was read in between was about that very process.
            if stat is None or stat.state in "ZX" or start_time not in {None, stat.start_time} or is_readable(pidfd):
                os.close(pidfd)
                return None
        except BaseException:
            os.close(pidfd)
            raise
        return Process(Identity(pid, stat.start_time), pidfd)

    async def run(self, command: Command) -> Completed:
        """Run a child in a session of its own until it exits, whoever may still hold its pipes by then.

        When the budget is over or the caller is cancelled, its process group gets SIGKILL and it is reaped.

        Raises:
            DeadlineExceeded: the budget ran out.
            OSError: it couldn't be started (FileNotFoundError, PermissionError ...), or its cgroup not be entered.
        """
        return await within(command.budget, self._run(command), str(command))

    async def start(self, command: Command) -> Process:
        """Start a child that lives on when we end, in a session of its own; its budget is not used, and it has no input.

        Its stderr is ours (the journal), its stdin and stdout are empty. The caller closes the result; the zombie is our
        business while we live, and pid 1's after that. Raises OSError as `run` does.
        """
        child = await self._spawned(command, piped=False)
        try:
            process = Process(child.identity, os.dup(child.pidfd))
        except OSError:  # no descriptor left: nobody would hold it
            await self._killed(child)
            raise
        self._supervisor.start(child.reaped(), name=f"reap {command}")
        return process

    async def table(self) -> list[ProcessInfo]:
        """Every process, by pid. What vanishes while we look is left out."""
        return await in_thread(lambda: list(procfs.scan(self._proc)))

    async def stop(self) -> None:
        """Let go of what `start` started. What `run` runs ends with its callers."""
        await self._supervisor.stop(0)

    async def _run(self, command: Command) -> Completed:
        child = await self._spawned(command, piped=True)
        try:
            stdout, stderr = await child.exchange(command.stdin)
            status = await child.status()
        except BaseException:
            await self._killed(child)
            raise
        self._supervisor.start(child.reap(), name=f"reap {command}")  # it takes a while, and nobody needs to wait for that
        return Completed(status, stdout, stderr)

    async def _spawned(self, command: Command, *, piped: bool) -> Child:
        """A started child that has an owner at every moment: a caller that is cancelled meanwhile leaves none behind."""
        born: list[Child] = []
        abandoned = False

        async def start() -> None:
            born.append(await in_thread(spawn, command, piped=piped, proc=self._proc, cgroup_root=self._cgroup_root))
            if abandoned:
                await self._killed(born[0])

        try:
            await self._supervisor.detached(start(), name=f"start {command}")
        except asyncio.CancelledError:
            abandoned = True
            if born:  # started in the very moment of the cancellation
                await self._killed(born[0])
            raise
        return born[0]

    async def _killed(self, child: Child) -> None:
        """Kill the child's group and see it end, but not for ever."""
        if child.released:
            return
        child.kill()
        with contextlib.suppress(DeadlineExceeded):
            await within(KILL_GRACE, self._supervisor.detached(child.reaped(), name=f"reap {child.identity.pid}"), "SIGKILL")

    def _stat(self, pid: int) -> Stat | None:
        try:
            return procfs.parse_stat(files.read(f"{self._proc}/{pid}/stat"))
        except (FileNotFoundError, ProcessLookupError):
            return None


def open_pidfd(pid: int) -> int | None:
    """pidfd_open(2); None if there is no such process (a thread's number isn't one)."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:
            return None
        raise
