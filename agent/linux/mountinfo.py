"""/proc/PID/mountinfo, parsed (proc(5)). Pure; used by `mounts` and `holders`.

A node under load has 10,000 mounts, and each unmount asks what is mounted at one path: so lines are sorted out by their
mount point before anything else of them is looked at (10 instead of 50 ms for such a table).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The kernel writes space, tab, newline, backslash, and in a source #, as three octal digits.
_ESCAPE = re.compile(r"\\([01][0-7]{2})")


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
    return [mount for line in os.fsdecode(data).split("\n") if (mount := _parse(line)) is not None]


def parse_below(data: bytes, path: Path) -> list[MountInfo]:
    """The mounts at and below `path`, in order of making: a mount after the one that it is on."""
    mounts = []
    for line in os.fsdecode(data).split("\n"):
        fields = line.split(" ", 5)
        if len(fields) == 6 and is_below(_decoded(fields[4]), path) and (mount := _parse(line)) is not None:
            mounts.append(mount)
    return _in_order_of_making(mounts)


def is_below(path: str, top: Path) -> bool:
    """Whether a path of the kernel's is `top` or below it."""
    prefix = os.fspath(top)
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/" or prefix == "/")


def _parse(line: str) -> MountInfo | None:
    head, separator, tail = line.partition(" - ")
    fields = head.split(" ")
    rest = tail.split(" ", 2)  # an empty source is two spaces in a row
    if not separator or len(fields) < 6 or len(rest) != 3:
        return None
    number, parent, device, root, mount_point, options, *optional = fields
    if not (number.isdecimal() and parent.isdecimal()):
        return None
    return MountInfo(
        int(number),
        int(parent),
        device,
        _decoded(root),
        Path(_decoded(mount_point)),
        options,
        " ".join(optional),
        rest[0],
        _decoded(rest[1]),
        _decoded(rest[2]),
    )


def _decoded(field: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def _in_order_of_making(mounts: Iterable[MountInfo]) -> list[MountInfo]:
    """The table is in that order already, but for a mount that was moved onto a newer one."""
    waiting = {mount.mount_id: mount for mount in mounts}
    ordered: list[MountInfo] = []
    for mount in mounts:
        chain = []
        current: MountInfo | None = mount
        while current is not None and current.mount_id in waiting:
            del waiting[current.mount_id]
            chain.append(current)
            current = waiting.get(current.parent_id)
        ordered += reversed(chain)
    return ordered
