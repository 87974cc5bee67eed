"""Releasing what an audit found, for `orlop reap`: dependents first, and each thing only if it is still the very one that was found.

A process is held by pidfd, and has to have its start time and its cgroup; a mount its id, a pinned namespace its inode, a cgroup
and a file theirs. Paths are walked from the root without following a link, and nothing is removed in which something is mounted.
What is not as it was is left alone and told; the next audit judges it anew.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, assert_never

from agent import failpoints, log
from agent.aio import in_thread, within
from agent.errdefs import Busy, DeadlineExceeded, FailedPrecondition, OrlopError
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.targets import AttachmentTarget, CgroupTarget, ChainTarget, FileTarget, MountTarget, PinTarget, ProcessTarget, Target
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Process, Processes
from agent.snapshots.removal import remove_tree

_log = log.get("reap")

ORDER = (
    Thing.RUNC_INIT, Thing.PROCESS, Thing.SHIM, Thing.CGROUP, Thing.MOUNT, Thing.ENGINE_STATE, Thing.BUNDLE, Thing.WORK_DIR,
    Thing.FIFO, Thing.SOCKET, Thing.CNI, Thing.CHAIN, Thing.NETNS, Thing.IPCNS, Thing.UTSNS, Thing.SANDBOX_DIR, Thing.SNAPSHOT,
    Thing.LAYER_UNPACK, Thing.INGEST,
)  # fmt: skip
"""What is released before what it pins; the network goes after the last process in it, with CNI DEL before its namespace."""

_TERM_GRACE, _KILL_GRACE = 3.0, 5.0
"""Seconds for a process to end after SIGTERM, and after SIGKILL."""

Outcome = Literal["released", "gone", "refused", "failed"]


class Plugins(Protocol):
    """What network plugins did, undone. Raises OrlopError, OSError."""

    async def detach(self, file: Path) -> None:
        """CNI DEL for the attachment that libcni's cache has in this file."""

    async def remove_chain(self, tool: str, name: str, sandbox: str) -> bool:
        """Remove a chain that is for this sandbox; whether it was there."""


@dataclass(frozen=True)
class Step:
    """One act."""

    finding: Finding
    what: str
    outcome: Outcome
    detail: str = ""


def plan(found: Iterable[Finding], *, kinds: Collection[str] = (), owners: Collection[str] = ()) -> list[Finding]:
    """The leaks that can be released, in order. Never what is unknown, nor what a ledger entry owns. Empty `kinds`, `owners`: all."""
    leaks = [
        finding
        for finding in found
        if finding.state is State.LEAKED
        and finding.targets
        and (not kinds or finding.kind in kinds)
        and (not owners or finding.owner in owners)
    ]
    return sorted(leaks, key=_position)


def _position(finding: Finding) -> tuple[int, int]:
    """What was mounted or made later, and what is further down, goes first."""
    first = finding.targets[0]
    depth = first.mount_id if isinstance(first, MountTarget) else first.path.count("/") if isinstance(first, CgroupTarget) else 0
    return ORDER.index(finding.kind), -depth


class Reaper:
    """Acts. What it is made of is other in tests."""

    def __init__(self, processes: Processes, cgroups: Cgroups, mounts: Mounts, namespaces: Namespaces, plugins: Plugins) -> None:
        self._processes = processes
        self._cgroups = cgroups
        self._mounts = mounts
        self._namespaces = namespaces
        self._plugins = plugins

    async def release(self, finding: Finding) -> list[Step]:
        """Release one finding, target by target; each act is logged. Never raises for what can't be released."""
        steps = []
        for target in finding.targets:
            what = _named(target)
            try:
                await failpoints.hit("leaks.reap.act")
                outcome: Outcome = "released" if await self._release(target) else "gone"
                step = Step(finding, what, outcome)
            except FailedPrecondition as error:
                step = Step(finding, what, "refused", str(error))
            except (OrlopError, OSError) as error:
                step = Step(finding, what, "failed", str(error))
            _log.info(f"reap: {step.outcome}", kind=finding.kind.value, what=what, owner=finding.owner, detail=step.detail)
            steps.append(step)
        return steps

    async def _release(self, target: Target) -> bool:
        """Whether there was anything to do. Raises FailedPrecondition: it isn't what was found; OrlopError, OSError."""
        match target:
            case ProcessTarget():
                return await self._end(target)
            case CgroupTarget():
                return await self._remove_cgroup(target)
            case MountTarget():
                return await self._unmount(target)
            case PinTarget():
                return await self._release_pin(target)
            case AttachmentTarget():
                if not await in_thread(_is_there, target.file):
                    return False
                await self._plugins.detach(target.file.path)
                return True
            case ChainTarget():
                return await self._plugins.remove_chain(target.tool, target.name, target.sandbox)
            case FileTarget():
                return await self._remove(target)
            case _:
                assert_never(target)

    async def _end(self, target: ProcessTarget) -> bool:
        process = await self._processes.open(target.pid, target.start_time)
        if process is None:
            return False
        with process:
            cgroup = max((await self._cgroups.of_process(target.pid)).values(), key=len, default="")
            if not process.alive():
                return False
            if cgroup != target.cgroup:
                raise FailedPrecondition(
                    f"process {target.pid} is in cgroup {cgroup} now, and was in {target.cgroup}: somebody has moved it"
                )
            if target.graceful and await _ends(process, signal.SIGTERM, _TERM_GRACE):
                return True
            if not await _ends(process, signal.SIGKILL, _KILL_GRACE):
                raise DeadlineExceeded(f"process {target.pid} has not ended {_KILL_GRACE:g} s after SIGKILL: it is stuck in the kernel")
            return True

    async def _remove_cgroup(self, target: CgroupTarget) -> bool:
        try:
            inode = (await in_thread(target.directory.lstat)).st_ino
        except FileNotFoundError:
            return False
        if inode != target.inode:
            raise FailedPrecondition(f"cgroup {target.path} has been made anew: it belongs to somebody")
        await self._cgroups.kill(target.path, _KILL_GRACE)
        await self._cgroups.remove(target.path)
        return True

    async def _unmount(self, target: MountTarget) -> bool:
        there = [mount for mount in await self._mounts.at_or_below(target.path) if mount.mount_point == target.path]
        if all(mount.mount_id != target.mount_id for mount in there):
            return False
        if there[-1].mount_id != target.mount_id:
            raise FailedPrecondition(f"another mount lies over that at {target.path}: it belongs to somebody")
        await self._mounts.unmount(target.path)
        return True

    async def _release_pin(self, target: PinTarget) -> bool:
        if not await in_thread(os.path.lexists, target.path):
            return False
        inode = await self._namespaces.inode(target.path)
        if inode != target.inode or await in_thread(target.path.is_symlink):
            raise FailedPrecondition(f"{target.path} pins {inode or 'nothing'} now, and had {target.inode or 'nothing'}")
        await self._namespaces.release(target.path)
        return True

    async def _remove(self, target: FileTarget) -> bool:
        if mounts := await self._mounts.at_or_below(target.path):
            raise Busy(f"{target.path} has {mounts[-1].mount_point} mounted in it")
        return await in_thread(_remove_file, target)


async def _ends(process: Process, signal_number: int, budget: float) -> bool:
    process.kill(signal_number)
    try:
        await within(budget, process.wait(), f"process {process.pid} to end")
    except DeadlineExceeded:
        return False
    return True


@contextmanager
def _held(target: FileTarget) -> Iterator[tuple[int, str] | None]:
    """The directory of what was found, as a descriptor, and its name there; None: it is gone. Blocks, on local file systems only.

    Raises:
        FailedPrecondition: there is another file now, or a link on the way.
    """
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in target.path.parent.parts[1:]:
            try:
                below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            except FileNotFoundError:
                yield None
                return
            except NotADirectoryError as error:
                raise FailedPrecondition(f"{part} on the way to {target.path} is no directory any more, or a link") from error
            os.close(directory)
            directory = below
        try:
            status = os.lstat(target.path.name, dir_fd=directory)
        except FileNotFoundError:
            yield None
            return
        if (status.st_dev, status.st_ino) != (target.device, target.inode):
            raise FailedPrecondition(f"{target.path} is another one than was found: it was made since")
        yield directory, target.path.name
    finally:
        os.close(directory)


def _is_there(target: FileTarget) -> bool:
    with _held(target) as here:
        return here is not None


def _remove_file(target: FileTarget) -> bool:
    with _held(target) as here:
        if here is None:
            return False
        directory, name = here
        path = Path(f"/proc/self/fd/{directory}", name)
        if target.listening and _answers(path):
            raise FailedPrecondition(f"somebody listens at {target.path}")
        if names := _names(directory, name, "rootfs"):
            # The container's files, or somebody's who was mounted there: bundles have theirs elsewhere.
            raise FailedPrecondition(f"{target.path}/rootfs is not empty though nothing is mounted there: {', '.join(names[:5])}")
        remove_tree(path)
        return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _names(directory: int, *parts: str) -> list[str]:
    """What is in a directory, on the way to which is no link; nothing if there is none."""
    held = [directory]
    try:
        for part in parts:
            held.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held[-1]))
        return sorted(os.listdir(held[-1]))
    except (FileNotFoundError, NotADirectoryError):
        return []
    finally:
        for descriptor in held[1:]:
            os.close(descriptor)


def _named(target: Target) -> str:
    match target:
        case ProcessTarget():
            return f"process {target.pid}"
        case CgroupTarget():
            return f"cgroup {target.path}"
        case AttachmentTarget():
            return f"attachment {target.file.path}"
        case ChainTarget():
            return f"chain {target.name} of {target.tool}"
        case MountTarget() | PinTarget() | FileTarget():
            return str(target.path)
