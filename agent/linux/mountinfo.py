"""/proc/PID/mountinfo, parsed (proc(5)). Pure; used by `mounts` and `holders`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One mount."""

    mount_id: int
    parent_id: int
    device: str
    """Major and minor number of the file system, "8:1"."""
    root: str
    """The directory of the file system that is mounted here: not "/" for a bind mount of a part."""
    mount_point: Path
    """Relative to the root directory of the process whose table this is."""
    options: str
    """Of this mount, comma-separated."""
    optional: str
    """Propagation: "shared:1", "master:2" and the like, separated by spaces; empty when private."""
    fstype: str
    source: str
    super_options: str
    """Of the file system, comma-separated."""


def parse_mountinfo(data: bytes) -> list[MountInfo]:
    """The mounts of a table, in its order. Octal escapes are decoded; a line that isn't one is left out."""
    mounts = []
    for line in data.split(b"\n"):
        head, separator, tail = line.partition(b" - ")
        fields = head.split(b" ")
        # Three fields follow, the last of which may be missing or empty (an empty source is two spaces).
        rest = tail.split(b" ", 2)
        if not separator or len(fields) < 6 or len(rest) < 2 or not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        mounts.append(
            MountInfo(
                int(fields[0]),
                int(fields[1]),
                fields[2].decode("ascii", "replace"),
                _decoded(fields[3]),
                Path(_decoded(fields[4])),
                _decoded(fields[5]),
                _decoded(b" ".join(fields[6:])),
                _decoded(rest[0]),
                _decoded(rest[1]),
                _decoded(rest[2]) if len(rest) == 3 else "",
            )
        )
    return mounts


def _decoded(field: bytes) -> str:
    if b"\\" in field:  # the kernel writes space, tab, newline, backslash and a leading # so
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
    return os.fsdecode(field)


def under(mounts: Iterable[MountInfo], path: Path) -> list[MountInfo]:
    """The mounts at and below `path`, in order of making: a mount after the one that it is on.

    The table is in that order already, but for a mount that was moved onto a newer one.
    """
    prefix = f"{path}/" if path != path.parent else "/"
    found = [mount for mount in mounts if mount.mount_point == path or str(mount.mount_point).startswith(prefix)]
    waiting = {mount.mount_id: mount for mount in found}
    ordered: list[MountInfo] = []
    for mount in found:
        chain = []
        current: MountInfo | None = mount
        while current is not None and current.mount_id in waiting:
            del waiting[current.mount_id]
            chain.append(current)
            current = waiting.get(current.parent_id)
        ordered += reversed(chain)
    return ordered
