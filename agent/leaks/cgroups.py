"""Cgroups of shims, pods and containers that no ledger entry owns, and, where kubelets put pods, that no runtime on the node has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import named
from agent.leaks.owners import ID, of_cgroup
from agent.leaks.paths import cgroup_target, modified
from agent.leaks.suspects import Suspect, judged
from agent.store.ledger import Kind

_POD = re.compile(rf"([^-]+-)*pod{ID.pattern}(\.slice)?")
"""As `agent.pods.pod_cgroup` names it: `pod<id>`, or the slice `a-b-pod<id>.slice`."""
_KUBEPODS = ("/kubepods", "/kubepods.slice", "/kubelet/kubepods", "/kubelet.slice/kubelet-kubepods.slice")
_KUBELET_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")
"""A kubelet names it by the pod's uid, in the names of slices with underscores."""
_DEPTH = 4
"""QoS class, pod, container, and what systemd puts between."""
_COPIER = "log-copier"
"""Its leaf beside those of the shims; it stays."""


def find(look: Look) -> Iterator[Finding]:
    if not look.node.another_orlop:  # whose settings may name the same cgroups
        yield from _shims(look)
        yield from _pods(look)
    containers = _containers(look)
    yield from judged(look, containers) if look.beside_others else (suspect.finding for suspect in containers)
    yield from judged(look, _foreign(look))


def container_in(name: str) -> str:
    """The container of a cgroup called `name`: the id in it (systemd's are `PREFIX-<id>.scope`), or all of it."""
    found = ID.search(name)
    return found[0] if found else name


def _shims(look: Look) -> Iterator[Finding]:
    """The leaves that shims live in: the directory above them is the agent's alone."""
    for name, directory in sorted(look.node.cgroups_in(look.places.shim_cgroup).items()):
        if name != _COPIER and ID.fullmatch(name) and name not in look.owned.bundles:
            path = f"{look.places.shim_cgroup.rstrip('/')}/{name}"
            yield _finding(look, path, directory, "the cgroup of a shim that the ledger doesn't have")


def _pods(look: Look) -> Iterator[Finding]:
    """Pod cgroups of the agent's own making."""
    owned = look.owned.keys(Kind.CGROUP)
    for name, directory in sorted(look.node.cgroups_in(look.places.pod_cgroup).items()):
        path = f"{look.places.pod_cgroup}/{name}"
        if _POD.fullmatch(name) and path not in owned:
            yield _finding(look, path, directory, "the cgroup of a pod that the ledger doesn't have")


def _containers(look: Look) -> Iterator[Suspect]:
    """In the cgroups of pods that the ledger has. A container's is named by its id, whatever stands around that.

    What is above it need not be ours alone: clients of two runtimes may name the same cgroup parent.
    """
    containers = look.owned.keys(Kind.TASK)
    for parent in sorted(look.owned.cgroup_parents):
        for name, directory in sorted(look.node.cgroups_in(parent).items()):
            if (found := ID.search(name)) and found[0] not in containers and not _POD.fullmatch(name):
                why = f"the cgroup of container {found[0]}, which the ledger doesn't have, in a pod that it has"
                owner = of_cgroup(name)
                if owner == "unknown" and not look.beside_others:
                    owner = "orlop"
                yield Suspect(replace(_finding(look, f"{parent}/{name}", directory, why, owner), once=found[0]), found[0])


def _foreign(look: Look) -> Iterator[Suspect]:
    """Where kubelets have their pods. Those of pods and containers of ours are not judged here."""
    ours = look.owned.cgroup_parents
    owned, tasks = {*look.owned.container_cgroups, *ours}, look.owned.bundles
    for path, directory in sorted(look.node.cgroups_below(_KUBEPODS, _DEPTH).items()):
        name = path.rpartition("/")[2]
        if path in owned or any(parent.startswith(f"{path}/") for parent in ours) or path.rpartition("/")[0] in ours:
            continue
        if (found := ID.search(name)) is not None:
            if found[0] in tasks:
                continue
            why = f"the cgroup of container {found[0]}, which no runtime on the node has"
            yield Suspect(_finding(look, path, directory, why, of_cgroup(name)), found[0])
        elif (found := _KUBELET_POD.search(name)) is not None:
            inside = look.node.cgroups_in(path)
            if not (inside or look.node.in_cgroup(path)) or any(container_in(child) in tasks for child in inside):
                continue
            # Empty, it may be of a pod whose sandbox fails to start: the kubelet's to keep or to remove, as it is in the end.
            uid = found[1].replace("_", "-")
            finding = _finding(look, path, directory, f"the cgroup of pod {uid}, of which no runtime on the node has a sandbox", "unknown")
            yield Suspect(replace(finding, releases="the end of what is in it; the kubelet removes it then", targets=()), uid)


def _finding(look: Look, path: str, directory: Path, why: str, owner: Owner = "orlop") -> Finding:
    processes = look.node.in_cgroup(path)
    target = cgroup_target(path, directory)
    held = f"in it: {named(processes)}" if processes else "no process is in it"
    return Finding(
        kind=Thing.CGROUP,
        what=path,
        owner=owner,
        state=State.LEAKED,
        why=f"{why}; {held}",
        releases="The end of what is in it (cgroup.kill; on v1 SIGKILL by pidfd, thawed), then rmdir from the bottom up in every hierarchy",
        since=modified(directory),
        identity=str(target[0].inode) if target else "",
        pins="the cgroups above it, and so the pod",
        targets=target,
    )
