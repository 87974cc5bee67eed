"""Looking at directories, in which anything can vanish at any time. Blocks; raises OSError."""

from __future__ import annotations

import os
from pathlib import Path


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
