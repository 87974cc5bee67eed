"""How much containers wrote: `python -m agent.snapshots.usage_worker`, a process that can be killed where a thread can't.

Directories as a JSON list on stdin, `[[bytes, inodes], ...]` on stdout in their order; one that is gone counts nothing. Started
by `agent.snapshots.snapshotter`. Counts as `du` does: blocks on disk, each inode once.
"""

from __future__ import annotations

import json
import os
import sys


def usage(directory: str) -> tuple[int, int]:
    """Bytes and inodes of a tree, without crossing into mounts."""
    size = inodes = 0
    seen: set[int] = set()
    try:
        device = os.lstat(directory).st_dev
    except FileNotFoundError:
        return 0, 0
    todo = [directory]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device or status.st_ino in seen:
                        continue
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        seen.add(status.st_ino)
                    size += status.st_blocks * 512
                    inodes += 1
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        except OSError:  # it was removed under our eyes, or its path grew too long: what was counted counts
            continue
    return size, inodes


if __name__ == "__main__":
    os.nice(10)
    json.dump([usage(directory) for directory in json.load(sys.stdin)], sys.stdout)
