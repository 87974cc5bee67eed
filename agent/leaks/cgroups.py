"""Cgroups of shims, pods and containers that no ledger entry owns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import named
from agent.leaks.paths import modified
from agent.store.ledger import Kind

_ID = re.compile(r"[0-9a-f]{64}")
_POD = re.compile(rf"([^-]+-)*pod{_ID.pattern}(\.slice)?")
"""As `agent.pods.pod_cgroup` names it: `pod<id>`, or the slice `a-b-pod<id>.slice`."""
_COPIER = "log-copier"
"""Its leaf beside those of the shims; it stays."""


def find(look: Look) -> Iterator[Finding]:
    if not look.node.another_orlop:  # whose settings may name the same cgroups
        yield from _shims(look)
        yield from _pods(look)
    yield from _containers(look)


def container_in(name: str) -> str:
    """The container of a cgroup called `name`: the id in it (systemd's are `PREFIX-<id>.scope`), or all of it."""
    found = _ID.search(name)
    return found[0] if found else name


def _shims(look: Look) -> Iterator[Finding]:
    """The leaves that shims live in: the directory above them is the agent's alone."""
    for name, directory in sorted(look.node.cgroups_in(look.places.shim_cgroup).items()):
        if name != _COPIER and name not in look.owned.bundles:
            path = f"{look.places.shim_cgroup.rstrip('/')}/{name}"
            yield _finding(look, path, directory, "the cgroup of a shim that the ledger doesn't have")


def _pods(look: Look) -> Iterator[Finding]:
    """Pod cgroups of the agent's own making."""
    owned = look.owned.keys(Kind.CGROUP)
    for name, directory in sorted(look.node.cgroups_in(look.places.pod_cgroup).items()):
        path = f"{look.places.pod_cgroup}/{name}"
        if _POD.fullmatch(name) and path not in owned:
            yield _finding(look, path, directory, "the cgroup of a pod that the ledger doesn't have")


def _containers(look: Look) -> Iterator[Finding]:
    """In the cgroups of pods that the ledger has. A container's is named by its id, whatever stands around that."""
    containers = look.owned.keys(Kind.TASK)
    for parent in sorted(look.owned.cgroup_parents):
        for name, directory in sorted(look.node.cgroups_in(parent).items()):
            if (found := _ID.search(name)) and found[0] not in containers and not _POD.fullmatch(name):
                why = f"the cgroup of container {found[0]}, which the ledger doesn't have, in a pod that it has"
                yield _finding(look, f"{parent}/{name}", directory, why)


def _finding(look: Look, path: str, directory: Path, why: str) -> Finding:
    processes = look.node.in_cgroup(path)
    held = f"in it: {named(processes)}" if processes else "no process is in it"
    return Finding(
        kind=Thing.CGROUP,
        what=path,
        owner="orlop",
        state=State.LEAKED,
        why=f"{why}; {held}. It pins the cgroups above it",
        releases="The end of what is in it (cgroup.kill; on v1 SIGKILL by pidfd, thawed), then rmdir from the bottom up in every hierarchy",
        since=modified(directory),
    )
