"""An image as a volume: how an engine mounts its files, read-only, inside of a container.

It is an overlay of the layers alone, given to the engine as a mount of its own type. The engine makes it in the container's
mount namespace, with which it ends: nothing is mounted on the node, so there is nothing to undo, to recover or to leak. For a
sub path the lower directories are those of that name in the layers, so what is looked up is looked up here, in layers that
nobody can change, and not in a mount. The snapshotter calls this, in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from agent.errdefs import InvalidArgument, NotFound
from agent.linux.mounts import Mount
from agent.snapshots.lookup import merged_directories

_LOWERS = 2
"""overlayfs wants that many where there is no upper directory. A bind mount would do for one layer, but the root of a privileged
container can remount that writable, and write into a layer that other containers use."""


def make_empty(directory: Path) -> None:
    """Make the empty directories that fill up the lower ones; there already: no-op."""
    for empty in _empties(directory):
        empty.mkdir(parents=True, exist_ok=True, mode=0o755)


def mount(layers: Sequence[Path], names: Sequence[str], empty: Path, sub_path: str) -> Mount:
    """The mount of the directory `sub_path` (empty: all) of `layers`, topmost first; `names` are short paths of the same ones.

    Raises:
        NotFound: there is no such directory.
        InvalidArgument: it can't be said in mount options.
    """
    found = merged_directories(layers, os.fsencode(sub_path))
    if found is None:
        raise NotFound(f"{sub_path!r} is no directory of the image")
    below, numbers = os.fsdecode(found[0]), found[1]
    if set(below) & set(",:\\"):
        raise InvalidArgument(f"{sub_path!r} leads to {below!r}: overlay mount options can't name a path with ',', ':' or '\\' in it")
    lowers = [os.path.join(names[number], below) if below else names[number] for number in numbers]
    lowers += map(str, _empties(empty)[: max(0, _LOWERS - len(lowers))])
    option = f"lowerdir={':'.join(lowers)}"
    if len(os.fsencode(option)) >= os.sysconf("SC_PAGE_SIZE"):  # the kernel would cut it off
        raise InvalidArgument(f"{sub_path!r} is in {len(lowers)} layers of the image: their paths don't fit in a page of mount options")
    return Mount("overlay", "overlay", ("ro", option))


def _empties(directory: Path) -> list[Path]:
    return [directory / str(number) for number in range(_LOWERS)]
