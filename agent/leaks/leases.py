"""Addresses that host-local gave to sandboxes that the ledger doesn't have: enough of them, and no pod gets one any more."""

from __future__ import annotations

from collections.abc import Iterator

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.store.ledger import Kind


def find(look: Look) -> Iterator[Finding]:
    """Leases don't say which runtime made them: with a sign of another one, what the ledger doesn't have is taken for its own."""
    if look.node.others:
        return
    owned = look.owned.keys(Kind.CNI)
    for lease in look.read_leases(look.places.leases):
        if lease.sandbox not in owned:
            holder = f"sandbox {lease.sandbox}, which the ledger doesn't have" if lease.sandbox else "nobody: its file is empty"
            yield Finding(
                kind=Thing.CNI,
                what=f"address {lease.ip} of network {lease.network}",
                owner="unknown",
                state=State.LEAKED,
                why=f"host-local leased it to {holder}, and there is no sign of another runtime on the node that could have asked for it; "
                "it pins the address",
                releases=f"CNI DEL for that sandbox; if that can't be called any more, the removal of {lease.path}",
                identity=lease.sandbox,
            )
