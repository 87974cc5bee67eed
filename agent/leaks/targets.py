"""What a finding is about, exactly enough to be found again and to be told from what took its place: for `reap`, which
compares each of these with the node right before it acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessTarget:
    """A process. A number alone is reused."""

    pid: int
    start_time: int
    """Clock ticks since boot."""
    cgroup: str
    """The longest of its cgroups: one that was moved since is somebody's business."""
    graceful: bool = False
    """It gets SIGTERM and a moment first: a shim then takes its socket away and lets its containers live."""


@dataclass(frozen=True)
class CgroupTarget:
    """A cgroup in all hierarchies. One of the same name that was made since has another inode."""

    path: str
    directory: Path
    inode: int


@dataclass(frozen=True)
class MountTarget:
    """A mount of our own mount namespace."""

    path: Path
    mount_id: int


@dataclass(frozen=True)
class PinTarget:
    """A pinned namespace; `inode` is the namespace's, None for a file with none mounted on it."""

    path: Path
    inode: int | None


@dataclass(frozen=True)
class FileTarget:
    """A directory with what is in it, a file, or a socket. `path` is right below its directory's real path."""

    path: Path
    device: int
    inode: int
    listening: bool = False
    """A socket: it is removed only if a connect to it is refused."""


@dataclass(frozen=True)
class AttachmentTarget:
    """An attachment to a network: CNI DEL with what libcni's cache has in this file, which removes it."""

    file: FileTarget


@dataclass(frozen=True)
class ChainTarget:
    """A chain of a network plugin in the nat table."""

    tool: str
    name: str
    sandbox: str


Target = AttachmentTarget | ChainTarget | ProcessTarget | CgroupTarget | MountTarget | PinTarget | FileTarget
