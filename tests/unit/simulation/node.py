"""The simulated node: its kernel, its directories, the programs that run on it, what is to go wrong next, and what it was seen to break.

Directories and small files are real ones, on tmpfs; all else is in `kernel`. Programs (shims' short-lived actions, CNI plugins, the
engine) are coroutines of the world, not of the daemon: they go on when the daemon dies, unless somebody kills their process.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from agent.events import Exit
from agent.linux.processes import Command
from tests.unit.simulation.clock import CURRENT, Life, Loop
from tests.unit.simulation.kernel import Kernel, Proc

_STEP = 0.006
"""Seconds between two things that a program does, at the most."""


class Job:
    """A program that runs."""

    def __init__(self, proc: Proc) -> None:
        self.proc = proc
        self.stdout = b""
        self.stderr = b""

    def says(self, stdout: bytes = b"", stderr: bytes = b"") -> None:
        self.stdout += stdout
        self.stderr += stderr


Program = Callable[[Job, Command], Awaitable[int]]
"""Its exit status."""


class Sink(Protocol):
    """Where shims send events: the daemon that runs."""

    def exited(self, container_id: str, exec_id: str, exit_: Exit) -> None: ...


class Node:
    """One node of one world."""

    def __init__(self, loop: Loop, top: Path, binaries: Path, *, v2: bool) -> None:
        self.loop = loop
        self.random = loop.random
        self.top = top
        self.state_dir, self.root_dir = top / "run", top / "lib"
        self.netns_dir = top / "netns"
        self.cni_dir = top / "cni"
        self.binaries = binaries
        self.kernel = Kernel(loop.random, v2=v2)
        self.kernel.now = loop.time
        self.programs: dict[str, Program] = {}
        self.next_faults: dict[str, list[str]] = {}
        """What goes wrong the next times that something is done: subject to modes."""
        self.hits: Counter[str] = Counter()
        """How often each fault has really happened."""
        self.fired: Counter[str] = Counter()
        """What failpoints did, as "NAME ACTION": the player's own count."""
        self.violations: list[str] = []
        self.sink: Sink | None = None
        self.on_kill: Callable[[Proc], None] = lambda proc: None
        self.on_release_pin: Callable[[Path], None] = lambda path: None
        self.remove_chains: Callable[[str, str], list[str]] = lambda network, sandbox: []
        self.jobs: dict[Job, asyncio.Task[None]] = {}
        self.context = copy_context()
        self.context.run(CURRENT.set, None)
        for directory in (self.state_dir, self.root_dir, self.netns_dir, self.cni_dir / "net.d", self.cni_dir / "networks"):
            directory.mkdir(parents=True)

    # ---- what is noticed

    def broken(self, what: str) -> None:
        """An invariant does not hold. Told at the end of the step."""
        self.violations.append(what)

    def killed_by_daemon(self, proc: Proc) -> None:
        self.on_kill(proc)

    def release_pin(self, path: Path) -> None:
        self.on_release_pin(path)
        self.kernel.unpin(path)

    # ---- what goes wrong

    def arm(self, subject: str, mode: str) -> None:
        self.next_faults.setdefault(subject, []).append(mode)

    def fault(self, subject: str) -> str:
        """The mode in which this goes wrong now; empty: it doesn't."""
        if not (modes := self.next_faults.get(subject)):
            return ""
        mode = modes.pop(0)
        self.hits[f"{subject} {mode}"] += 1
        return mode

    # ---- programs

    async def step(self) -> None:
        """A moment in which anything may happen."""
        await asyncio.sleep(self.random.random() * _STEP)

    def world(self, work: Any) -> asyncio.Task[Any]:
        """A task that is no daemon's."""
        return self.loop.start(work, self.context)

    def run(self, command: Command, life: Life) -> Job:
        """Start a program for the daemon. Raises OSError as Popen does."""
        program = self.programs.get(Path(command.argv[0]).name)
        if program is None or not os.path.exists(command.argv[0]):
            raise FileNotFoundError(errno.ENOENT, "no such executable", command.argv[0])
        if not command.cwd.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(command.cwd))
        job = self.job(Path(command.argv[0]).name, command, program, command.cgroup or daemon_cgroup(life))
        if self.fault("helper"):
            self.loop.call_later(self.random.random() * 3 * _STEP, job.proc.kill, context=self.context)
        return job

    def job(self, comm: str, command: Command, program: Program, cgroup: str) -> Job:
        """Start a program for anybody."""
        job = Job(self.kernel.spawn(comm, command.argv, cgroup=cgroup))
        task = self.jobs[job] = self.world(self._runs(job, command, program))
        task.add_done_callback(lambda _: self.jobs.pop(job, None))
        job.proc.at_end.append(partial(_cancel, task))
        return job

    async def _runs(self, job: Job, command: Command, program: Program) -> None:
        try:
            status = await program(job, command)
        except asyncio.CancelledError:
            return
        except Exception as error:  # the simulation's own mistake
            self.broken(f"the simulated {job.proc.comm} failed: {error!r}")
            status = 1
        job.proc.at_end.clear()
        job.proc.end(status)

    def tell(self, container_id: str, exec_id: str, exit_: Exit) -> None:
        """An event on its way to the daemon: soon, late, twice or never."""
        for _ in range(self.random.choice((1, 1, 1, 2, 0))):
            self.loop.call_later(self.random.random() * 0.05, self._arrives, container_id, exec_id, exit_, context=self.context)

    def _arrives(self, container_id: str, exec_id: str, exit_: Exit) -> None:
        if self.sink is not None:
            self.sink.exited(container_id, exec_id, exit_)

    def end_children(self, number: int) -> None:
        """What `agent.daemon.incarnation` does before the ledger is replayed."""
        for proc in self.kernel.members(f"/daemon-{number}"):
            proc.kill()
        self.kernel.remove_cgroup(f"/daemon-{number}")  # nothing there: a boot took it


def daemon_cgroup(life: Life) -> str:
    """Where the children of one incarnation are."""
    return f"/daemon-{life.number}"


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
