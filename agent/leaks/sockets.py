"""Sockets that dead shims left. Their directory is compiled into the shims, and everybody's.

A socket's name is a hash of the runtime's address, the namespace and an id: it can be told for an id, but not the id from it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.leaks import commands
from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.look import Look
from agent.leaks.paths import entries, file_target, modified


def find(look: Look) -> Iterator[Finding]:
    places = look.places
    used = _paths(look, {*look.owned.bundles, *_running(look)})
    leftovers = {
        path.name.lstrip(".") for directory in (places.bundles, places.work_dirs, places.engine_state) for path in entries(directory)
    }
    ours = _paths(look, leftovers)
    listening = set(look.node.bound_sockets.values())
    for path in entries(places.shim_sockets("any")[0].parent):
        if path in used or not _is_socket(path):
            continue
        if path in ours:
            yield _finding(path, "orlop", "of a shim of the agent's whose bundle, work directory or engine state was left as well")
        elif path not in listening and (not look.beside_others or not look.young(modified(path))):
            yield _finding(path, "unknown", "that is none of a shim that the ledger has, and nobody listens at it")


def _running(look: Look) -> Iterator[str]:
    """What shims of ours that run were started for: their sockets are theirs, leaked or not."""
    for process in look.node.processes.values():
        shim = commands.shim(process.cmdline)
        if shim is not None and shim.address == look.places.address:
            yield shim.id


def _paths(look: Look, ids: Iterable[str]) -> set[Path]:
    return {path for shim in ids for path in look.places.shim_sockets(shim)}


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _finding(path: Path, owner: Owner, what: str) -> Finding:
    return Finding(
        kind=Thing.SOCKET,
        what=str(path),
        owner=owner,
        state=State.LEAKED,
        why=f"a shim's socket {what}; one that was killed leaves it",
        releases="unlink, if a connect to it is refused",
        since=modified(path),
        targets=file_target(path, listening=True),
    )
