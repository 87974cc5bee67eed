"""Pinned namespaces that no ledger entry owns: IPC and UTS below the state directory, the network in /run/netns.

The first are certainly ours. A `cni-*` in /run/netns can be any runtime's: where there is a sign of another one, those that
the ledger doesn't have are taken for its own; else they are reported, their owner unknown, if no process is inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.errdefs import Unavailable
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import INIT, Node
from agent.leaks.paths import entries
from agent.store.ledger import Kind

PREFIX = "cni-"


def find(look: Look) -> Iterator[Finding]:
    """IPC and UTS."""
    owned = look.owned.keys(Kind.IPCNS, Kind.UTSNS)
    for path in entries(look.places.pins):
        if str(path) not in owned:
            yield Finding(
                kind=Thing.IPCNS if path.name.endswith("-ipc") else Thing.UTSNS,
                what=str(path),
                owner="orlop",
                state=State.LEAKED,
                why="a namespace pin in the agent's own directory that no ledger entry owns; it keeps the namespace alive",
                releases="umount and unlink of the pin",
            )


def find_network(look: Look) -> Iterator[Finding]:
    if look.node.others:
        return
    owned = look.owned.keys(Kind.NETNS)
    unowned = [path for path in entries(look.places.netns_dir) if path.name.startswith(PREFIX) and str(path) not in owned]
    inodes = {path: inode(look.node, path) for path in unowned}
    inside = _processes_in(look.node, {found for found in inodes.values() if found is not None})
    for path, found in inodes.items():
        if found in inside:
            continue
        if found is None:
            why = "a file where network namespaces are pinned, with none mounted on it"
        else:
            why = "a pinned network namespace with no process in it, and with it its interfaces and addresses"
        yield Finding(
            kind=Thing.NETNS,
            what=str(path),
            owner="unknown",
            state=State.LEAKED,
            why=f"{why}; the ledger doesn't have it, and there is no sign of another runtime on the node that could have made it",
            releases="CNI DEL for the sandbox whose it was, with what its ADD was called with; then the umount and unlink of the pin",
        )


def inode(node: Node, pin: Path) -> int | None:
    """The inode of the namespace at `pin`; None: no namespace is mounted there. Raises OSError."""
    try:
        status = pin.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # All namespace files, and nothing else, are on the kernel's one nsfs.
    return status.st_ino if status.st_dev == node.nsfs else None


def _processes_in(node: Node, inodes: set[int]) -> set[int]:
    """Those of the network namespaces that a process is in. Raises OSError, Unavailable: it can't be told."""
    if not inodes:
        return set()
    if node.unreadable:
        raise Unavailable(f"which network namespace process {', '.join(map(str, node.unreadable))} is in can't be read")
    names = {f"net:[{number}]": number for number in inodes}
    return {names[name] for pid in node.processes if pid != INIT and (name := node.namespace(pid, "net")) in names}
