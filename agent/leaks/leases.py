"""Addresses that host-local gave to sandboxes that nobody has, and what libcni caches of them: enough of them, and no pod gets one
any more.

A lease doesn't say which runtime made it. Beside another runtime only those are judged that name a sandbox as CRI runtimes do:
nerdctl and Nomad have theirs in the same directories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.owners import ID
from agent.leaks.paths import file_target, modified
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import AttachmentTarget
from agent.store.ledger import Kind


def find(look: Look) -> Iterator[Finding]:
    suspects = [*_results(look), *_leases(look)]  # in this order: DEL of the first releases the second
    if look.beside_others:
        yield from judged(look, (suspect for suspect in suspects if ID.fullmatch(suspect.identifier)))
    else:
        yield from (suspect.finding for suspect in suspects)


def _leases(look: Look) -> Iterator[Suspect]:
    owned = look.owned.keys(Kind.CNI)
    for lease in look.network.leases(look.places.leases):
        if lease.sandbox not in owned:
            holder = f"sandbox {lease.sandbox}, which the ledger doesn't have" if lease.sandbox else "nobody: its file is empty"
            what = f"address {lease.ip} of network {lease.network}"
            yield Suspect(_finding(what, f"host-local leased it to {holder}", "the address", lease.path, lease.sandbox), lease.sandbox)


def _results(look: Look) -> Iterator[Suspect]:
    owned = look.owned.keys(Kind.CNI)
    for result in look.network.results(look.places.results):
        if result.sandbox not in owned:
            what = f"attachment of sandbox {result.sandbox} to network {result.network}"
            why = f"libcni's cache has it in {result.path}; the ledger doesn't"
            finding = _finding(what, why, "what CNI DEL would give back", result.path, result.sandbox)
            yield Suspect(replace(finding, targets=tuple(map(AttachmentTarget, file_target(result.path)))), result.sandbox)


def _finding(what: str, why: str, pins: str, path: Path, sandbox: str) -> Finding:
    return Finding(
        kind=Thing.CNI,
        what=what,
        owner="unknown",
        state=State.LEAKED,
        why=f"{why}, and no other runtime on the node has it",
        releases=f"CNI DEL for that sandbox; if that can't be called any more, the removal of {path}",
        since=modified(path),
        identity=sandbox,
        pins=pins,
        targets=file_target(path),
        once=sandbox,
    )
