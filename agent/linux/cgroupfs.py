"""Where the cgroup hierarchies are and who is in them: reading only, without a wait. Shared by `processes` and `cgroups`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from agent.errdefs import InvalidArgument
from agent.linux import files

Mode = Literal["v1", "hybrid", "v2"]

Membership = Mapping[str, str]
"""Where a process is, see `parse_membership`."""

UNIFIED = ""
"""The name of the v2 hierarchy, as in the third field of `0::/path` in /proc/PID/cgroup."""


def hierarchies(root: Path) -> dict[str, Path]:
    """Every hierarchy mounted at or below `root`: directory name (`UNIFIED` for v2) to mount point.

    Pure v2 is told by `cgroup.controllers` in `root` itself. Otherwise each directory of `root` is a hierarchy: v1 ones
    (the named ones like `systemd` too), and the v2 one of a hybrid host. Links (`cpu` to `cpu,cpuacct`) are no second one.
    """
    if (root / "cgroup.controllers").exists():
        return {UNIFIED: root}
    found = {}
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and os.path.exists(os.path.join(entry.path, "cgroup.procs")):
                unified = os.path.exists(os.path.join(entry.path, "cgroup.controllers"))
                found[UNIFIED if unified else entry.name] = Path(entry.path)
    return found


def mode(mounted: dict[str, Path]) -> Mode:
    """How the host uses cgroups; "hybrid" is v1 controllers beside a v2 mount."""
    if UNIFIED not in mounted:
        return "v1"
    return "v2" if len(mounted) == 1 else "hybrid"


def parse_membership(data: bytes) -> dict[str, str]:
    """/proc/PID/cgroup: controllers ("memory", "cpu,cpuacct", "name=systemd", `UNIFIED`) to path (cgroups(7))."""
    membership = {}
    for line in data.split(b"\n"):
        fields = line.split(b":", 2)
        if len(fields) == 3:
            membership[os.fsdecode(fields[1])] = os.fsdecode(fields[2])
    return membership


def of_node(memberships: Mapping[int, Membership], proc: Path, mount: Path) -> Mapping[int, Membership]:
    """What /proc says of processes, by pid, with paths in the v2 hierarchy at `mount` as the node has them.

    A pod of Kubernetes has a cgroup namespace on v2, and on v2 only: from there others are at "/../../a.slice" (cgroup_namespaces(7)).

    Raises:
        OSError: it can't be told: there are only the cgroups of a container at `mount`, and not those of the node.
    """
    depth = max((membership.get(UNIFIED, "").split("/").count("..") for membership in memberships.values()), default=0)
    if not depth:
        return memberships
    root = _namespace_root(proc, mount)
    if root.count("/") < depth:
        raise FileNotFoundError(errno.ENOENT, "the cgroups of the node aren't there, but only those of a container", str(mount))
    return {
        pid: {**membership, UNIFIED: os.path.normpath(f"{root}/{membership[UNIFIED]}")} if UNIFIED in membership else membership
        for pid, membership in memberships.items()
    }


@cache
def _namespace_root(proc: Path, mount: Path) -> str:
    """The root of our namespace: where the process is that looks. It stays the same for a process, and to find it takes a while."""
    own = parse_membership(files.read(f"{proc}/self/cgroup"))[UNIFIED].rstrip("/")
    pid = os.readlink(proc / "self").encode()
    found = (directory for directory, _, _ in os.walk(mount) if pid in _members(directory))
    return next(found, str(mount)).removeprefix(str(mount)).removesuffix(own)


def _members(directory: str) -> list[bytes]:
    try:
        return files.read(f"{directory}/cgroup.procs").split()
    except OSError:
        return []  # of threads only, or just removed


def relative(path: str) -> str:
    """`path` without its slashes at the ends, to be joined to a hierarchy's mount point.

    Raises:
        InvalidArgument: the root of the hierarchy, or a path that leaves its place: all of that is somebody else's.
    """
    stripped = path.strip("/")
    if not stripped or any(part in {"", ".", ".."} for part in stripped.split("/")):
        raise InvalidArgument(f"cgroup path {path!r} doesn't name one cgroup below the root")
    return stripped


def slice_path(name: str) -> str:
    """Where systemd puts a slice: `a-b.slice` is below `a.slice` (systemd.slice(5)). Empty for the root slice."""
    parts = name.removesuffix(".slice").split("-")
    if parts == ["", ""]:
        return ""
    return "".join(f"/{'-'.join(parts[:end])}.slice" for end in range(1, len(parts) + 1))


def below(root: Path, path: str) -> list[Path]:
    """The directories of cgroup `path`, one for each hierarchy that has it. A path that only some have is normal on v1."""
    name = relative(path)
    return [directory for mount in hierarchies(root).values() if (directory := mount / name).is_dir()]


def enter(root: Path, path: str, pid: int) -> None:
    """Move process `pid` into cgroup `path` in every hierarchy that has it.

    Raises:
        FileNotFoundError: no hierarchy has it.
    """
    directories = below(root, path)
    if not directories:
        raise FileNotFoundError(errno.ENOENT, "no hierarchy has this cgroup", path)
    for directory in directories:
        files.write(f"{directory}/cgroup.procs", str(pid))
