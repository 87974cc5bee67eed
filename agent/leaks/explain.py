"""One pod, container, path or process: what it holds, what holds it, and which release is pending, for `orlop explain`.

Only reads. A subject is resolved to the ids it is about; from these everything else is found: their ledger entries, who uses what
those stand for, and what an audit says of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.aio import in_thread
from agent.errdefs import NotFound
from agent.leaks.finding import Finding
from agent.leaks.node import Node, longest_cgroup, named
from agent.leaks.owners import ID
from agent.leaks.pins import inode
from agent.leaks.places import Places
from agent.leaks.targets import ProcessTarget
from agent.linux.mounts import Mounts
from agent.linux.procfs import ProcessInfo, printable
from agent.store.ledger import Kind, Resource

_SHOWN = 10
"""Holders of one thing."""
_SHORTEST = 4
"""Digits of an id that is not given whole."""
_LONGEST_PID = 7
"""Digits of a process; more are the beginning of an id."""


@dataclass(frozen=True)
class Subject:
    """What is asked about."""

    title: str
    ids: frozenset[str] = frozenset()
    """Sandboxes and containers."""
    path: Path | None = None
    process: ProcessInfo | None = None


@dataclass(frozen=True)
class Held:
    """A thing, and who uses it, so that it can't be released."""

    what: str
    by: Sequence[str]


@dataclass(frozen=True)
class Explanation:
    """All that is known of a subject."""

    subject: Subject
    resources: Sequence[Resource]
    held: Sequence[Held]
    facts: Sequence[str]
    """Of a process: where it is."""
    findings: Sequence[Finding]

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject.title,
            "ids": sorted(self.subject.ids),
            "facts": list(self.facts),
            "resources": [
                {
                    **{name: getattr(one, name) for name in ("key", "sandbox", "container", "created", "attempts", "error")},
                    **{name: getattr(one, name) for name in ("failed_since", "next_attempt")},
                    "kind": one.kind.value,
                    "state": one.state.value,
                    "advice": advice(one) if one.failed_since is not None else "",
                }
                for one in self.resources
            ],
            "held": [{"what": one.what, "by": list(one.by)} for one in self.held],
            "findings": [finding.to_json() for finding in self.findings],
        }


def resolve(text: str, resources: Iterable[Resource], node: Node) -> Subject:
    """What `text` means: a number is a process, what begins with `/` a path, else it is an id or the beginning of one.

    Raises:
        NotFound: there is no such thing, or several.
    """
    if text.startswith("/"):
        path = Path(os.path.normpath(text))
        owners = {one.container or one.sandbox for one in resources if one.key == str(path)}
        return Subject(f"path {path}", frozenset(owners | {part for part in path.parts if ID.fullmatch(part)}), path)
    number = int(text) if text.isdecimal() and len(text) <= _LONGEST_PID else None
    if number is not None and (process := node.processes.get(number)) is not None:
        return Subject(f"process {process.pid} ({printable(process.comm)})", _ids_of(process, resources, node), process=process)
    known = {identifier for one in resources for identifier in (one.sandbox, one.container) if identifier}
    found = {identifier for identifier in known if identifier == text or (len(text) >= _SHORTEST and identifier.startswith(text))}
    if len(found) == 1:
        return of_id(found.pop(), resources)
    if not found and ID.fullmatch(text):
        return of_id(text, resources)
    if not found and number is not None:
        reason = node.unreadable.get(number, "")
        raise NotFound(f"there is no process {text} that can be looked at" + (f": {reason}" if reason else ""))
    raise NotFound(f"{text!r} is {'several' if found else 'none'} of the sandboxes and containers in the ledger")


def of_id(identifier: str, resources: Iterable[Resource]) -> Subject:
    """A sandbox with its containers, or a container; one of which the ledger has nothing any more has a history still."""
    mine = [one for one in resources if identifier in (one.sandbox, one.container)]
    containers = {one.container for one in mine if one.sandbox == identifier and one.container}
    what = "pod" if any(one.sandbox == identifier for one in mine) else "container" if mine else "former pod or container"
    return Subject(f"{what} {identifier}", frozenset({identifier, *containers}))


def _ids_of(process: ProcessInfo, resources: Iterable[Resource], node: Node) -> frozenset[str]:
    """By its cgroup, or as a shim by its command line."""
    ids = {found[0] for path in process.cgroups.values() if (found := ID.search(path.rpartition("/")[2]))}
    if (shim := node.shims.get(process.pid)) is not None:
        ids.add(shim.id)
    ids |= {one.container for one in resources if one.data.get("cgroup") in process.cgroups.values() and one.container}
    return frozenset(ids)


async def explain(subject: Subject, resources: Iterable[Resource], findings: Iterable[Finding], node: Node, mounts: Mounts) -> Explanation:
    """Put together what is known. Looking for holders is bounded (`Mounts.holders`). Raises OSError."""
    mine = [one for one in resources if _concerns(subject, one)]
    held = [await _holders(path, mounts) for path in _mount_points(subject, mine, node.places)]
    held += await in_thread(_members, mine, node)
    facts = await in_thread(_facts, subject.process, node) if subject.process else []
    return Explanation(subject, mine, [one for one in held if one.by], facts, [one for one in findings if _is_about(subject, one)])


def advice(resource: Resource) -> str:
    """What the operator can do about a release that fails."""
    return _ADVICE.get(resource.kind, "Nothing, once what the error names is gone") + ". A running daemon tries again by itself"


_BUSY = (
    "End what holds the mount; a mount namespace that has a copy lets it go by `nsenter --mount --target PID umount PATH`. "
    "`umount --lazy` hides it and frees nothing"
)
_ADVICE = {
    Kind.TASK: _BUSY,
    Kind.SHM: _BUSY,
    Kind.SNAPSHOT: _BUSY,
    Kind.CGROUP: "End the processes in it; one in state D waits for the kernel, often for a storage that is gone",
    Kind.CNI: "Mend what the plugin complains about; DEL is called again with the configuration that ADD had",
    Kind.NETNS: "Close what has the pin open, or its copy in another mount namespace",
    Kind.SHIM: "Look at its log, and at the processes below it",
    Kind.LOG: "Look at the file system of the log directory: a copier that can't write keeps the streams",
}


def _concerns(subject: Subject, resource: Resource) -> bool:
    owned = resource.sandbox in subject.ids or resource.container in subject.ids
    return owned or (subject.path is not None and resource.key == str(subject.path))


def _mount_points(subject: Subject, resources: Iterable[Resource], places: Places) -> list[Path]:
    paths = [subject.path] if subject.path else []
    paths += [places.bundles / one.key / "rootfs" for one in resources if one.kind is Kind.TASK]
    return paths + [Path(one.key) for one in resources if one.kind is Kind.SHM]


async def _holders(path: Path, mounts: Mounts) -> Held:
    """Of what is mounted at or below a path; for one where nothing is mounted, of its files."""
    return Held(f"mount {path}", _cut([str(holder) for holder in await mounts.holders(path)]))


def _members(resources: Iterable[Resource], node: Node) -> list[Held]:
    """Who is in cgroups and network namespaces."""
    held = []
    for one in resources:
        path = one.key if one.kind is Kind.CGROUP else str(one.data.get("cgroup") or "")
        if path:
            held.append(Held(f"cgroup {path}", _cut([named([process]) for process in node.in_cgroup(path)])))
        if one.kind is Kind.NETNS and (number := inode(node, Path(one.key))) is not None:
            inside = [process for pid, process in node.processes.items() if _namespace(node, pid) == f"net:[{number}]"]
            held.append(Held(f"network namespace {one.key}", _cut([named([process]) for process in inside])))
    return held


def _facts(process: ProcessInfo, node: Node) -> list[str]:
    parent = node.processes.get(process.ppid)
    shim = node.shims.get(process.ppid)
    facts = [f"command: {printable(' '.join(process.cmdline)) or process.comm}", f"cgroup: {longest_cgroup(process)}"]
    if process.state in "DZ":
        facts.append("state: waits for the kernel, no signal reaches it" if process.state == "D" else "state: has ended, nobody asked how")
    if shim is not None:
        facts.append(f"child of the shim {process.ppid} for {shim.id}, of {shim.address}")
    elif parent is not None:
        facts.append(f"child of {named([parent])}")
    if namespace := _namespace(node, process.pid):
        facts.append(f"network namespace: {namespace}")
    return facts


def _namespace(node: Node, pid: int) -> str:
    try:
        return node.namespace(pid, "net")
    except OSError:
        return ""


def _is_about(subject: Subject, finding: Finding) -> bool:
    if subject.process is not None:
        return any(isinstance(target, ProcessTarget) and target.pid == subject.process.pid for target in finding.targets)
    if subject.path is not None and str(subject.path) == finding.what:
        return True
    texts = (finding.what, finding.why)
    return any(identifier in text for identifier in subject.ids for text in texts)


def _cut(names: Sequence[str]) -> list[str]:
    return [*names[:_SHOWN], *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]
