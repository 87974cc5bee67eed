"""What one incarnation of the daemon can do to the simulated node: the classes of `agent.linux`, one for one.

Each call is made in a thread (`agent.aio.in_thread`), as the real ones are: it takes a moment, it goes on when its caller is cancelled,
and it does not happen if the incarnation is dead by then.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.aio import in_thread, within
from agent.errdefs import Busy, DeadlineExceeded, FailedPrecondition
from agent.linux.mounts import Holder, Mount, MountInfo
from agent.linux.processes import Command, Completed, Identity, ProcessInfo
from tests.unit.simulation.clock import Life
from tests.unit.simulation.kernel import Kernel, Proc
from tests.unit.simulation.node import Node

_BUSY_RETRIES = (0.02, 0.05, 0.1, 0.2)
_POLL = 0.02
_KILL_GRACE = 5.0


class Held:
    """A pidfd."""

    def __init__(self, proc: Proc, life: Life, killed: Callable[[Proc], None]) -> None:
        self._proc = proc
        self._life = life
        self._open = True
        self._killed = killed

    @property
    def identity(self) -> Identity:
        return self._proc.identity

    @property
    def pid(self) -> int:
        return self._proc.pid

    def alive(self) -> bool:
        self._insist()
        return self._proc.alive

    async def wait(self) -> None:
        self._insist()
        await self._proc.ended.wait()

    def kill(self, signal_number: int, /) -> None:
        self._insist()
        if not self._life.dead and self._proc.alive:
            assert signal_number == signal.SIGKILL
            self._killed(self._proc)
            self._proc.kill()

    def close(self) -> None:
        self._open = False

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _insist(self) -> None:
        if not self._open:
            raise ValueError(f"{self._proc} was closed")


class SimProcesses:
    """`agent.linux.processes.Processes`."""

    def __init__(self, node: Node, life: Life) -> None:
        self._node = node
        self._life = life

    async def open(self, pid: int, start_time: int | None = None) -> Held | None:
        proc = self._node.kernel.procs.get(pid)
        stat = await in_thread(self._node.kernel.procs.get, pid)
        if proc is None or stat is not proc or start_time not in {None, proc.identity.start_time}:
            return None
        return Held(proc, self._life, self._node.killed_by_daemon)

    async def run(self, command: Command) -> Completed:
        return await within(command.budget, self._run(command), str(command))

    async def _run(self, command: Command) -> Completed:
        await in_thread(lambda: None)
        self._life.check()
        began = asyncio.get_running_loop().time()
        job = self._node.run(command, self._life)
        try:
            await job.proc.ended.wait()
            return Completed(job.proc.status, job.stdout, job.stderr)
        except BaseException:
            if not self._life.dead:
                lasted = asyncio.get_running_loop().time() - began
                if not self._life.ending and lasted < command.budget - 0.1:
                    self._node.broken(f"{command} was cut off after {lasted:.3f} s, its budget is {command.budget:g} s")
                job.proc.kill()
                if job.proc.alive:
                    await asyncio.wait((asyncio.ensure_future(job.proc.ended.wait()),), timeout=_KILL_GRACE)
            raise

    async def table(self) -> list[ProcessInfo]:
        return await in_thread(lambda: [_row(proc) for proc in self._node.kernel.procs.values()])

    async def stop(self) -> None:
        pass


def _row(proc: Proc) -> ProcessInfo:
    return ProcessInfo(proc.pid, proc.parent, proc.comm, proc.argv, "S", proc.identity.start_time, {"": proc.cgroup or "/"})


class SimMounts:
    """`agent.linux.mounts.Mounts`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _kernel(self) -> Kernel:
        return self._node.kernel

    async def at_or_below(self, path: Path) -> list[MountInfo]:
        return await in_thread(self._kernel.mount_table, path)

    async def mount(self, mount: Mount, target: Path) -> None:
        await in_thread(self._kernel.mount, target, mount.source, mount.type)

    async def unmount_all(self, path: Path) -> None:
        for delay in (*_BUSY_RETRIES, None):
            try:
                await in_thread(self._kernel.unmount_below, path)
                break
            except Busy:
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def holders(self, path: Path) -> list[Holder]:
        return await in_thread(self._kernel.holders, path)


class SimCgroups:
    """`agent.linux.cgroups.Cgroups`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _kernel(self) -> Kernel:
        return self._node.kernel

    async def create(self, path: str) -> None:
        await in_thread(self._kernel.make_cgroup, path)

    async def exists(self, path: str) -> bool:
        return await in_thread(lambda: path in self._kernel.cgroups)

    async def of_process(self, pid: int) -> dict[str, str]:
        proc = await in_thread(self._kernel.procs.get, pid)
        return {} if proc is None else {"": proc.cgroup}

    async def processes(self, path: str) -> set[int]:
        return await in_thread(lambda: {proc.pid for proc in self._kernel.members(path)})

    async def named(self, path: str) -> str:
        return str(await self.processes(path))

    async def kill(self, path: str, budget: float) -> None:
        deadline = asyncio.get_running_loop().time() + budget
        while pids := await in_thread(self._kill, path):
            if asyncio.get_running_loop().time() >= deadline:
                raise DeadlineExceeded(f"after {budget:g} s cgroup {path} still has {pids}")
            await asyncio.sleep(_POLL)

    def _kill(self, path: str) -> list[Proc]:
        found = self._kernel.members(path)
        if any(proc.comm == "orlop" for proc in found):
            raise FailedPrecondition(f"cgroup {path} has this very process in it and is not killed")
        for proc in found:
            self._node.killed_by_daemon(proc)
            proc.kill()
        self._kernel.thaw(path)
        return found

    async def wait_empty(self, path: str, budget: float) -> None:
        deadline = asyncio.get_running_loop().time() + budget
        while await self.processes(path):
            if asyncio.get_running_loop().time() >= deadline:
                raise DeadlineExceeded(path)
            await asyncio.sleep(_POLL)

    async def remove(self, path: str) -> None:
        if pids := await in_thread(self._kernel.members, path):
            raise Busy(f"can't remove cgroup {path}: in it {pids}. It stays until they are gone")
        try:
            await in_thread(self._kernel.remove_cgroup, path)
        except OSError as error:
            raise Busy(f"can't remove cgroup {path}: {error}") from error


class SimNamespaces:
    """`agent.linux.namespaces.Namespaces`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def create(self, pins: Mapping[str, Path], *, hostname: str = "", sysctls: Mapping[str, str] | None = None) -> dict[str, int]:
        return await in_thread(self._create, pins)

    def _create(self, pins: Mapping[str, Path]) -> dict[str, int]:
        made: dict[str, int] = {}
        try:
            for kind, path in pins.items():
                made[kind] = self._node.kernel.pin(path, kind)
        except OSError:
            for kind in made:
                self._node.kernel.unpin(pins[kind])
            raise
        return made

    async def inode(self, pin: Path) -> int | None:
        return await in_thread(self._node.kernel.pins.get, pin)

    async def release(self, pin: Path) -> None:
        await in_thread(self._node.release_pin, pin)

    async def write_sysctls(self, pin: Path, sysctls: Mapping[str, str]) -> None:
        if await self.inode(pin) is None:
            raise FileNotFoundError(errno.ENOENT, "no namespace", str(pin))

    async def interface_counters(self, pins: Sequence[Path]) -> list[Any]:
        return [None for _ in pins]
