"""How much containers wrote: `python -m agent.snapshots.usage_worker`, a process that can be killed where a thread can't.

On stdin, as JSON, `{"directories": [...], "seconds": ...}`; on stdout `[[bytes, inodes, finished], ...]` in their order; one that
is gone counts nothing. Started by `agent.snapshots.snapshotter`. Counts as `du` does: blocks on disk, each inode once.

The directories are walked in turns, so that one with millions of files keeps no other from being measured. What isn't finished
when the time is up has what was counted by then: it is at least that much.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_PER_TURN = 1000
"""Entries of a directory; some milliseconds of work."""


@dataclass
class Tree:
    """One tree, as far as it was walked."""

    directory: str
    size: int = 0
    inodes: int = 0
    finished: bool = False
    _linked: set[int] = field(default_factory=set)

    def walk(self) -> Iterator[None]:
        """Count, without crossing into mounts, a turn at a time."""
        try:
            device = os.lstat(self.directory).st_dev
        except FileNotFoundError:
            self.finished = True
            return
        todo = [self.directory]
        while todo:
            try:
                with os.scandir(todo.pop()) as entries:
                    for number, entry in enumerate(entries, 1):
                        if self._count(entry, device):
                            todo.append(entry.path)
                        if not number % _PER_TURN:
                            yield
            except OSError:  # it was removed under our eyes, or its path grew too long: what was counted counts
                pass
            yield
        self.finished = True

    def _count(self, entry: os.DirEntry[str], device: int) -> bool:
        """Count one entry; whether there is more below it."""
        status = entry.stat(follow_symlinks=False)
        if status.st_dev != device or status.st_ino in self._linked:
            return False
        directory = entry.is_dir(follow_symlinks=False)
        if status.st_nlink > 1 and not directory:
            self._linked.add(status.st_ino)
        self.size += status.st_blocks * 512
        self.inodes += 1
        return directory


def measure(directories: Sequence[str], seconds: float) -> list[tuple[int, int, bool]]:
    """Bytes and inodes of trees, and whether all of it was counted within `seconds`."""
    deadline = time.monotonic() + seconds
    trees = [Tree(directory) for directory in directories]
    walks = deque(tree.walk() for tree in trees)
    while walks and time.monotonic() < deadline:
        walk = walks.popleft()
        try:
            next(walk)
        except StopIteration:
            continue
        walks.append(walk)
    return [(tree.size, tree.inodes, tree.finished) for tree in trees]


if __name__ == "__main__":
    os.nice(10)
    request = json.load(sys.stdin)
    json.dump(measure(request["directories"], request["seconds"]), sys.stdout)
