"""What the ledger owns: entries whose resource is gone from the node, and entries whose release failed.

A container's log streams (LOG), an exec (EXEC) and a network attachment (CNI) can't be looked at from outside: the log copier, the
shim and the plugins alone know. A container's FIFOs and a pod's namespace are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.pins import inode
from agent.store.ledger import Kind, Resource
from agent.store.ledger import State as EntryState


def find_missing(look: Look) -> Iterator[Finding]:
    for resource in look.owned.all:
        check = _CHECKS.get(resource.kind)
        if check is None or resource.state is not EntryState.HELD:
            continue
        try:
            missing = check(look, resource)
        except OSError as error:
            missing, state = f"it can't be looked at: {error}", State.UNKNOWN
        else:
            state = State.MISSING
        if missing:
            yield Finding(
                kind=Thing(resource.kind.value),
                what=resource.key,
                owner="orlop",
                state=state,
                why=f"the ledger holds it for {_owner(resource)}, but {missing}",
                releases="Stop and removal of its pod or container, which drops the entry; "
                "after a shim's death the daemon does that itself, at once",
                since=resource.created,
            )


def find_pending(look: Look) -> Iterator[Finding]:
    for resource in look.owned.all:
        if resource.failed_since is not None:  # also while it is being tried again
            yield Finding(
                kind=Thing(resource.kind.value),
                what=resource.key,
                owner="orlop",
                state=State.PENDING,
                why=f"its release for {_owner(resource)} has failed {resource.attempts} times: {resource.error}",
                releases="The end of what that error names; the running daemon tries again by itself",
                since=resource.failed_since,
            )


def _owner(resource: Resource) -> str:
    return f"container {resource.container}" if resource.container else resource.owner


def _shim(look: Look, resource: Resource) -> str:
    recorded = look.owned.shim_process(resource.key)
    if recorded is not None and look.node.alive(*recorded) is False:
        return f"its process, {recorded[0]}, has ended"
    return _no_directory(look.places.bundles / resource.key)


def _task(look: Look, resource: Resource) -> str:
    return _no_directory(look.places.bundles / resource.key)


def _pin(look: Look, resource: Resource) -> str:
    found, made = inode(look.node, Path(resource.key)), resource.data.get("inode")
    if found is None:
        return "no namespace is mounted there any more"
    return "" if made in (None, found) else f"another namespace is mounted there: {found} instead of {made}"


def _mount(look: Look, resource: Resource) -> str:
    path = Path(os.path.realpath(resource.key))
    return "" if any(mount.mount_point == path for mount in look.node.mounts) else "nothing is mounted there any more"


def _cgroup(look: Look, resource: Resource) -> str:
    return "" if look.node.has_cgroup(resource.key) else "no hierarchy has it any more"


def _no_directory(path: Path) -> str:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {path} any more"
    return ""


_CHECKS: dict[Kind, Callable[[Look, Resource], str]] = {
    Kind.SHIM: _shim,
    Kind.TASK: _task,
    Kind.NETNS: _pin,
    Kind.IPCNS: _pin,
    Kind.UTSNS: _pin,
    Kind.SHM: _mount,
    Kind.CGROUP: _cgroup,
    Kind.SNAPSHOT: lambda look, resource: _no_directory(look.places.snapshots / resource.key),
    Kind.SANDBOX_DIR: lambda _, resource: _no_directory(Path(resource.key)),
    Kind.FIFO: lambda look, resource: _no_directory(look.places.fifos / resource.key),
    Kind.INGEST: lambda look, resource: _no_directory(look.places.ingests / resource.key),
    Kind.LAYER_UNPACK: lambda look, resource: _no_directory(look.places.unpacks / resource.key),
}
"""What is missing, as the end of a sentence; empty: it is there. Blocks; raises OSError."""
