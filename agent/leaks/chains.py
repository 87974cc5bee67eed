"""Chains of iptables that network plugins made for a sandbox that nobody has, and that nothing else is left of.

While there is a lease or a cached result for it, that is what is reported, or what is just being made: its DEL takes the
chains along. They are left alone where that can't be called any more, as by a DEL after the network namespace was gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.owners import ID
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import ChainTarget
from agent.store.ledger import Kind


def find(look: Look) -> Iterator[Finding]:
    """Of sandboxes that are named as CRI runtimes do; one that nothing leads to is nobody's, but harms nobody either."""
    suspects = [suspect for suspect in _chains(look) if ID.fullmatch(suspect.identifier)]
    yield from judged(look, suspects) if look.beside_others else (suspect.finding for suspect in suspects)


def _chains(look: Look) -> Iterator[Suspect]:
    owned = look.owned.keys(Kind.CNI)
    chains = [chain for chain in look.network.chains() if chain.sandbox and chain.sandbox not in owned]
    if not chains:
        return
    attached = {lease.sandbox for lease in look.network.leases(look.places.leases)}
    attached |= {result.sandbox for result in look.network.results(look.places.results)}
    for chain in chains:
        if chain.sandbox not in attached:
            finding = Finding(
                kind=Thing.CHAIN,
                what=f"chain {chain.name} of {chain.tool}",
                owner="unknown",
                state=State.LEAKED,
                why=f"made for the network of sandbox {chain.sandbox}, which the ledger doesn't have, nor another runtime on the node; "
                "it has no address and no attachment any more",
                releases="the removal of the rules that lead to it, and of the chain",
                identity=chain.sandbox,
                pins="an address that the next pod gets: its traffic follows these rules",
                targets=(ChainTarget(chain.tool, chain.name, chain.sandbox),),
                once=chain.sandbox,
            )
            yield Suspect(finding, chain.sandbox, ageless=True)
