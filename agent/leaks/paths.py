"""Looking at directories, in which anything can vanish at any time. Blocks; raises OSError."""

from __future__ import annotations

import os
from pathlib import Path

from agent.leaks.targets import CgroupTarget, FileTarget


def entries(directory: Path) -> list[Path]:
    """What is in a directory, by name; nothing if it isn't there."""
    try:
        return [directory / name for name in sorted(os.listdir(directory))]
    except FileNotFoundError:
        return []


def modified(path: Path) -> float | None:
    """When it was changed last, in Unix seconds: for a directory that is filled once, when it was made. None: it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return None


def file_target(path: Path, *, listening: bool = False) -> tuple[FileTarget, ...]:
    """What is at `path` now, which itself is not followed; nothing if it is gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ()
    return (FileTarget(Path(os.path.realpath(path.parent)) / path.name, status.st_dev, status.st_ino, listening),)


def cgroup_target(path: str, directory: Path) -> tuple[CgroupTarget, ...]:
    """The cgroup that has this directory now; nothing if it is gone."""
    try:
        return (CgroupTarget(path, directory, directory.lstat().st_ino),)
    except FileNotFoundError:
        return ()
