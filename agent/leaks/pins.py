"""Pinned namespaces that nobody owns: IPC and UTS below the state directory, the network in /run/netns.

The first are certainly ours. One in /run/netns can be any runtime's: one that the ledger doesn't have, and that no process is in,
is that of the sandbox that libcni's cache has it for; the other runtimes on the node are asked for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from agent.errdefs import Unavailable
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import INIT, Node
from agent.leaks.owners import ID
from agent.leaks.paths import entries, modified
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import PinTarget
from agent.store.ledger import Kind

_OURS = re.compile(r"cni-.*")
_NAMED = re.compile(rf"{ID.pattern}-(ipc|uts)")
"""As the agent names pins of its own."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""CRI-O's."""


def find(look: Look) -> Iterator[Finding]:
    """IPC and UTS."""
    owned = look.owned.keys(Kind.IPCNS, Kind.UTSNS)
    for path in entries(look.places.pins):
        if str(path) not in owned:
            yield Finding(
                kind=Thing.IPCNS if path.name.endswith("-ipc") else Thing.UTSNS,
                what=str(path),
                owner="orlop" if _NAMED.fullmatch(path.name) else "unknown",
                state=State.LEAKED,
                why="a namespace pin in the agent's own directory that no ledger entry owns",
                releases="umount and unlink of the pin",
                pins="the namespace",
                targets=(PinTarget(path, inode(look.node, path)),),
            )


def find_network(look: Look) -> Iterator[Finding]:
    """Those of the names that runtimes give; `ip netns add blue` is the operator's."""
    suspects = _network(look)
    yield from judged(look, suspects) if look.beside_others else (suspect.finding for suspect in suspects)


def _network(look: Look) -> Iterator[Suspect]:
    owned = look.owned.keys(Kind.NETNS)
    names = re.compile(f"{_OURS.pattern}|{_UUID.pattern}" if look.beside_others else _OURS.pattern)
    unowned = [path for path in entries(look.places.netns_dir) if names.fullmatch(path.name) and str(path) not in owned]
    inodes = {path: inode(look.node, path) for path in unowned}
    inside = _processes_in(look.node, {found for found in inodes.values() if found is not None})
    sandboxes = {Path(result.netns).name: result.sandbox for result in look.network.results(look.places.results)} if unowned else {}
    for path, found in inodes.items():
        if found in inside:
            continue
        if found is None:
            why = "a file where network namespaces are pinned, with none mounted on it"
        else:
            why = "a pinned network namespace with no process in it"
        sandbox = sandboxes.get(path.name, "")
        whose = f", was made for sandbox {sandbox}" if sandbox else ""
        finding = Finding(
            kind=Thing.NETNS,
            what=str(path),
            owner="unknown",
            state=State.LEAKED,
            why=f"{why}{whose}; the ledger doesn't have it, nor has another runtime on the node",
            releases="CNI DEL for the sandbox whose it was, with what its ADD was called with; then the umount and unlink of the pin",
            since=modified(path),
            identity=str(found),
            pins="the network namespace, and with it its interfaces and addresses",
            targets=(PinTarget(path, found),),
            once=str(path),
        )
        yield Suspect(finding, sandbox)


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
