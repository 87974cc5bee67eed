"""Mounts: the table, making and undoing them, and who keeps a busy one.

Callers: `agent.snapshots` and `agent.images` (layers), `agent.pods` (/dev/shm), `agent.runtime.v2` (what is left under a
rootfs), `agent.leaks`. A container's own mounts are made by its shim and engine, in its mount namespace.

Whether something is mounted is read from the table, never asked of the path: that can lie on a dead network file system.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import log, metrics
from agent.aio import in_thread, within
from agent.errdefs import Busy, DeadlineExceeded
from agent.linux import files, libc, mountoptions
from agent.linux.holders import Holder, count_holders, find_holders
from agent.linux.mountinfo import MountInfo, parse_below, parse_mountinfo
from agent.linux.throwaway import in_own_thread

__all__ = ["Holder", "Mount", "MountInfo", "Mounts", "parse_mountinfo"]

_log = log.get("linux")

_BUSY_RETRIES = (0.02, 0.05, 0.1, 0.2)
"""Seconds between the tries of `unmount_all`: a process that just died lets go of its mounts a little later."""
_HOLDERS_BUDGET = 5.0
"""Seconds for `holders`; a process stuck in the kernel can stop the search."""
_NOTHING_THERE = {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}


@dataclass(frozen=True)
class Mount:
    """A mount to make, in the form of OCI and containerd: what the snapshotter returns and shims take."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""
    """Relative to the rootfs; for shims, which mount there themselves. Empty: the rootfs."""


class Mounts:
    """The mounts of our mount namespace. `proc` is another place in tests only."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    async def table(self) -> list[MountInfo]:
        """Every mount, in the kernel's order, which is that of making."""
        return await in_thread(lambda: parse_mountinfo(self._read_table()))

    async def at_or_below(self, path: Path) -> list[MountInfo]:
        """The mounts at and below `path`, in order of making."""
        return await in_thread(lambda: self._below(_real(path)))

    async def mount(self, mount: Mount, target: Path) -> None:
        """Make `mount` at `target`, which exists. All its options hold when this returns; else nothing is mounted.

        Raises:
            OSError: from the kernel; E2BIG when the options don't fit in a page; EINVAL for a `Mount.target`.
        """
        if mount.target:
            raise OSError(errno.EINVAL, f"a mount at {mount.target!r} inside of a rootfs is the shim's to make", os.fspath(target))
        await in_thread(_mount, mountoptions.calls(mount.type, mount.source, mount.options), target)

    async def bind(self, source: Path, target: Path) -> None:
        """Make `source`, without the mounts below it, appear at `target`, which exists."""
        await self.mount(Mount("bind", os.fspath(source), ("bind",)), target)

    async def unmount(self, path: Path, *, detach: bool = False) -> None:
        """Undo the topmost mount at `path`; links are not followed. Nothing mounted: nothing happens.

        `detach` takes it out of the name space now and leaves it to the kernel to end it when the last user is gone.

        Raises:
            Busy: names the holders. The mount stays.
        """
        try:
            await in_thread(self._unmount, path, libc.MNT_DETACH if detach else 0)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            metrics.mount_busy.inc()
            raise await self._busy(await in_thread(_real, path)) from error

    async def unmount_all(self, path: Path) -> None:
        """Undo every mount at and below `path`, in reverse order of making. What is busy is tried again for a moment.

        Raises:
            Busy: names the holders. What could be unmounted is, the rest stays.
        """
        for delay in (*_BUSY_RETRIES, None):
            left = await in_thread(self._unmount_pass, _real(path))
            if not left:
                return
            metrics.mount_busy.inc()
            if delay is None:
                raise await self._busy(left[-1].mount_point)
            await asyncio.sleep(delay)

    async def holders(self, path: Path) -> list[Holder]:
        """Who keeps the topmost mount at `path`, in any mount namespace. Bounded; incomplete if a process is stuck in the kernel."""
        return await self._look_for_holders(path, lambda: _real(path))

    async def _look_for_holders(self, path: Path, real: Callable[[], Path]) -> list[Holder]:
        found: list[Holder] = []

        def look() -> None:
            find_holders(real(), self._proc, found)

        try:
            await within(_HOLDERS_BUDGET, in_own_thread(look), f"looking for holders of {path}")
        except DeadlineExceeded as error:
            _log.warning("the list of holders may be incomplete", mount=str(path), error=str(error))
        return list(found)

    async def _busy(self, real: Path) -> Busy:
        """What to say of a busy mount. `real` is as the table has it: what is above may be of a dead server, so it isn't looked up."""
        holders = await self._look_for_holders(real, lambda: real)
        below = [str(mount.mount_point) for mount in await in_thread(self._below, real) if mount.mount_point != real]
        count_holders(holders, below=bool(below))
        reasons = [str(holder) for holder in holders] + [f"the mount {mount_point} below it" for mount_point in below]
        return Busy(f"can't unmount {real}, it is held by {'; '.join(reasons) or 'nobody that is to be seen'}. It stays mounted")

    def _read_table(self) -> bytes:
        return files.read(f"{self._proc}/self/mountinfo")

    def _below(self, path: Path) -> list[MountInfo]:
        return parse_below(self._read_table(), path)

    def _unmount(self, path: Path, flags: int) -> None:
        try:
            libc.umount2(path, flags | libc.UMOUNT_NOFOLLOW)
        except OSError as error:
            # EINVAL is "not a mount point", but also "this mount is locked", which must not pass for success.
            if error.errno not in _NOTHING_THERE or any(mount.mount_point == _real(path) for mount in self._below(_real(path))):
                raise

    def _unmount_pass(self, path: Path) -> list[MountInfo]:
        """Try each mount once; what is left. Not those that one hides which stays: their paths lead into that, perhaps a dead server's."""
        stay: list[Path] = []
        for mount in reversed(self._below(path)):
            if any(mount.mount_point.is_relative_to(over) for over in stay):
                continue
            try:
                libc.umount2(mount.mount_point, libc.UMOUNT_NOFOLLOW)
            except OSError as error:
                # Nothing there: it went along with another one that it was propagated from, or a later mount hides it.
                if error.errno != errno.EBUSY and error.errno not in _NOTHING_THERE:
                    raise
                if error.errno == errno.EBUSY:
                    stay.append(mount.mount_point)
        return self._below(path)


def _mount(plan: Sequence[mountoptions.Call], target: Path) -> None:
    for number, call in enumerate(plan):
        try:
            libc.mount(call.source, target, call.fstype, call.flags, call.data)
        except OSError:
            if number > 0 and not plan[0].flags & libc.MS_REMOUNT:
                libc.umount2(target, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
            raise


def _real(path: Path) -> Path:
    """`path` as the table has it: without links on the way, but not looked at itself."""
    return Path(os.path.realpath(path.parent)) / path.name
