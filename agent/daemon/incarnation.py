"""Children of a daemon that died are dead before the ledger is replayed (invariant 13, decisions.md 17).

An orphaned CNI ADD would race our DEL, an orphaned start helper our cleanup. `PR_SET_PDEATHSIG` doesn't help: it fires
when the forking *thread* ends. So each incarnation moves itself into a cgroup of its own before it forks anything; what it
forks is born there (shims and the log copier, which are to outlive it, are put elsewhere); and the next incarnation kills
what it finds in the cgroups of earlier ones. Where the last one was is kept in the state directory: the next may be started
somewhere else, by systemd after a try on the command line, say.

One hierarchy is enough to tell who is whose child, and the daemon stays where the node put it in all others: on v2 the only
one, on v1 systemd's named one, which has no controller, or `pids`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from pathlib import Path

from agent import log
from agent.aio import in_thread, within
from agent.errdefs import FailedPrecondition
from agent.linux.processes import Processes

_log = log.get("daemon")
_BUDGET = 10.0
_CANDIDATES = (("", ""), ("name=systemd", "systemd"), ("pids", "pids"))
_FILE = "daemon-cgroup"


class Incarnation:
    """One run of the daemon. `state_dir`, which exists, tells daemons of one node apart."""

    def __init__(self, processes: Processes, state_dir: Path, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        self._processes = processes
        self._prefix = f"orlop-daemon-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]}-"
        self._file = state_dir / _FILE
        self._root = root
        self._proc = proc
        self._own: Path | None = None

    async def begin(self) -> None:
        """End the children of earlier incarnations, then move this process into a cgroup of its own.

        Raises:
            FailedPrecondition: no cgroup hierarchy where that is possible.
            DeadlineExceeded: a child of an earlier incarnation doesn't die (state D); replaying beside it would be unsafe.
        """
        parent = await in_thread(self._parent)
        for earlier in await in_thread(self._earlier, parent):
            await self._end(earlier)
        self._own = parent / f"{self._prefix}{os.getpid()}"
        await in_thread(_keep, self._file, self._own)
        await in_thread(_enter, self._own)

    async def end(self) -> None:
        """Leave the cgroup in order: back to where the daemon was started, and nothing stays. What still runs in it is left to
        the next incarnation."""
        if self._own is not None:
            await in_thread(_leave, self._own)

    def _parent(self) -> Path:
        """The cgroup the daemon was started in, in the hierarchy that is used."""
        membership = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in (self._proc / "self/cgroup").read_text().splitlines()}
        v2 = (self._root / "cgroup.controllers").exists()
        for controllers, directory in _CANDIDATES:
            if controllers in membership and v2 == (not controllers):
                parts = Path(membership[controllers].lstrip("/")).parts
                own = [part for part in parts if not part.startswith(self._prefix)]
                return self._root / directory / Path(*own)
        raise FailedPrecondition(f"no cgroup hierarchy below {self._root} in which the daemon can tell its own children")

    def _earlier(self, parent: Path) -> list[Path]:
        """The cgroups of earlier incarnations: those beside ours, and beside that of the last one."""
        parents = {parent}
        try:
            last = Path(self._file.read_text())
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        else:
            if last.is_relative_to(self._root) and ".." not in last.parts:
                parents.add(last.parent)
        return sorted(path for each in parents for path in each.glob(f"{self._prefix}*"))

    async def _end(self, cgroup: Path) -> None:
        """Kill who is in the cgroup, until it is empty, and remove it."""
        killed: set[int] = set()

        async def until_empty() -> None:
            while pids := await in_thread(_members, cgroup):
                for pid in pids:
                    process = await self._processes.open(pid)
                    if process is None:
                        continue
                    with process:
                        if pid in await in_thread(_members, cgroup):  # still the one that was listed
                            process.kill(signal.SIGKILL)
                            killed.add(pid)
                await asyncio.sleep(0.01)
            await in_thread(_remove, cgroup)

        await within(_BUDGET, until_empty(), f"the end of the children of an earlier daemon in {cgroup}")
        if killed:
            _log.warning("ended children of an earlier daemon", pids=sorted(killed))


def _members(cgroup: Path) -> set[int]:
    try:
        return {int(line) for line in (cgroup / "cgroup.procs").read_text().split()}
    except OSError:
        return set()


def _keep(file: Path, cgroup: Path) -> None:
    """Written before the cgroup is entered, and whole or not at all: what an earlier text led to is ended by now."""
    new = file.with_suffix(".new")
    new.write_text(str(cgroup))
    new.replace(file)


def _enter(cgroup: Path) -> None:
    cgroup.mkdir(exist_ok=True)
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _leave(cgroup: Path) -> None:
    with contextlib.suppress(OSError):
        (cgroup.parent / "cgroup.procs").write_text(str(os.getpid()))
        cgroup.rmdir()


def _remove(cgroup: Path) -> None:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return
