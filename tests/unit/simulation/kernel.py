"""The kernel of a simulated node: processes, mounts, cgroups, and pinned namespaces, as facts without time.

Nothing here waits or fails at random: who acts on it, and when, is `syscalls` (for the daemon) and the programs that run on the node.
What the kernel would refuse is refused with the errno that it has for that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent.errdefs import Busy
from agent.linux.mounts import Holder, MountInfo
from agent.linux.procfs import Identity

_TICKS = os.sysconf("SC_CLK_TCK")
_PIDS = (100, 400)
"""Few numbers, so that they are used again soon."""


class Proc:
    """A process."""

    def __init__(self, kernel: Kernel, identity: Identity, comm: str, argv: tuple[str, ...], cgroup: str, parent: int) -> None:
        self.kernel = kernel
        self.identity = identity
        self.comm = comm
        self.argv = argv
        self.cgroup = cgroup
        self.parent = parent
        self.netns = 0
        """The inode of its network namespace; 0 is the node's own."""
        self.ended = asyncio.Event()
        self.status = 0
        self.stopped = False
        """By SIGSTOP."""
        self.continued = asyncio.Event()
        self.uninterruptible = False
        """In state D: it ends when that does."""
        self.killed = False
        self.owner = ""
        """The container that it is of; empty: none."""
        self.at_end: list[Callable[[], None]] = []

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def end(self, status: int) -> None:
        """It is gone; its children are init's."""
        if not self.alive:
            return
        self.status = status
        self.kernel.forget(self)
        self.ended.set()
        self.continued.set()
        for told in self.at_end:
            told()

    def kill(self) -> None:
        """SIGKILL: by the kernel's rules, nobody in a frozen v1 cgroup or in state D ends of it before that is over."""
        self.killed = True
        if not self.uninterruptible and not self.kernel.frozen(self.cgroup):
            self.end(-9)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True
        self.continued.clear()

    def go_on(self) -> None:
        """SIGCONT, and the end of state D."""
        self.stopped = self.uninterruptible = False
        self.continued.set()
        if self.killed:
            self.kill()

    def __repr__(self) -> str:
        return f"<{self.comm} {self.pid}>"


@dataclass
class MountPoint:
    path: Path
    source: str
    fstype: str
    number: int
    text: str = ""
    """The path, for comparing many."""
    holders: list[Proc] = field(default_factory=list)
    pinned_by: str = ""
    """A mount of somebody's own over it, which its maker alone takes away (Kata's shares)."""


class Kernel:
    """All objects of one node."""

    def __init__(self, choices: random.Random, *, v2: bool) -> None:
        self.v2 = v2
        self.procs: dict[int, Proc] = {}
        self.mounts: list[MountPoint] = []
        self.cgroups: dict[str, bool] = {}
        """Path to whether somebody froze it."""
        self.pins: dict[Path, int] = {}
        """Where a namespace is mounted: its inode."""
        self.kinds: dict[int, str] = {}
        self.at_namespace_end: Callable[[int], None] = lambda inode: None
        self.now: Callable[[], float] = lambda: 0.0
        self._choices = choices
        self._ticks = 1000
        self._mount_numbers = 20

    # ---- processes

    def spawn(self, comm: str, argv: Iterable[str] = (), *, cgroup: str = "", parent: int = 1) -> Proc:
        if cgroup and cgroup not in self.cgroups:
            raise FileNotFoundError(errno.ENOENT, "no hierarchy has this cgroup", cgroup)
        while (pid := self._choices.randint(*_PIDS)) in self.procs:
            pass
        self._ticks = max(self._ticks + 1, round(self.now() * _TICKS))
        proc = self.procs[pid] = Proc(self, Identity(pid, self._ticks), comm, tuple(argv), cgroup, parent)
        return proc

    def find(self, identity: Identity) -> Proc | None:
        proc = self.procs.get(identity.pid)
        return proc if proc is not None and proc.identity == identity else None

    def forget(self, proc: Proc) -> None:
        del self.procs[proc.pid]
        for child in self.procs.values():
            if child.parent == proc.pid:
                child.parent = 1
        for mount in self.mounts:
            if proc in mount.holders:
                mount.holders.remove(proc)
        self._left(proc.netns)

    # ---- cgroups

    def make_cgroup(self, path: str) -> None:
        parts = path.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            self.cgroups.setdefault("/" + "/".join(parts[:end]), False)

    def below(self, path: str) -> list[str]:
        return [other for other in self.cgroups if _is_below(other, path)]

    def members(self, path: str) -> list[Proc]:
        """The processes in a cgroup and below it."""
        return [proc for proc in self.procs.values() if proc.cgroup and _is_below(proc.cgroup, path)]

    def frozen(self, path: str) -> bool:
        """Whether SIGKILL waits for a thaw: on v1 alone."""
        return not self.v2 and any(frozen and _is_below(path, other) for other, frozen in self.cgroups.items())

    def thaw(self, path: str) -> None:
        for cgroup in self.below(path):
            self.cgroups[cgroup] = False
        for proc in self.members(path):
            if proc.killed:
                proc.kill()

    def remove_cgroup(self, path: str) -> None:
        """rmdir(2) of it and those below. Raises OSError EBUSY."""
        if self.members(path):
            raise OSError(errno.EBUSY, "cgroup has processes", path)
        for cgroup in self.below(path):
            del self.cgroups[cgroup]

    # ---- mounts

    def mount(self, path: Path, source: str, fstype: str) -> MountPoint:
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
        self._mount_numbers += 1
        mount = MountPoint(path, source, fstype, self._mount_numbers, str(path))
        self.mounts.append(mount)
        return mount

    def mounts_below(self, path: Path) -> list[MountPoint]:
        top = str(path)
        return [mount for mount in self.mounts if _is_below(mount.text, top)]

    def unmount(self, mount: MountPoint) -> None:
        """umount(2). Raises OSError EBUSY."""
        if mount.holders or mount.pinned_by:
            raise OSError(errno.EBUSY, "busy", str(mount.path))
        if mount in self.mounts:
            self.mounts.remove(mount)

    def unmount_below(self, path: Path) -> None:
        """Everything at and below `path`, the newest first. Raises Busy, which names the holders."""
        for mount in reversed(self.mounts_below(path)):
            try:
                self.unmount(mount)
            except OSError as error:
                raise Busy(f"can't unmount {mount.path}, it is held by {'; '.join(map(str, self.holders(mount.path)))}") from error

    def holders(self, path: Path) -> list[Holder]:
        return [
            Holder(proc.pid, proc.comm, "cwd", str(path), proc.cgroup or "/")
            for mount in self.mounts
            if mount.path == path
            for proc in mount.holders
        ]

    def mount_table(self, below: Path) -> list[MountInfo]:
        return [
            MountInfo(mount.number, 20, f"0:{mount.number}", "/", mount.path, "rw", "", mount.fstype, mount.fstype, mount.source)
            for mount in self.mounts_below(below)
        ]

    # ---- namespaces

    def pin(self, path: Path, kind: str) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        inode = self.pins[path] = path.stat().st_ino
        self.kinds[inode] = kind
        return inode

    def unpin(self, path: Path) -> None:
        """Undo a pin, mount and file. Nothing there: nothing happens."""
        inode = self.pins.pop(path, 0)
        path.unlink(missing_ok=True)
        self._left(inode)

    def _left(self, inode: int) -> None:
        """A namespace ends with its last process and its last pin."""
        if inode and inode not in self.pins.values() and not self.in_network(inode):
            self.at_namespace_end(inode)

    def in_network(self, inode: int) -> list[Proc]:
        return [proc for proc in self.procs.values() if proc.netns == inode]


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")
