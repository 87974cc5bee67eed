"""An audit: the ledger compared with the node, and what other runtimes have there with what they say.

Ledger and node can't be read at one moment, and both change all the time. But a ledger entry begins before its resource and
ends after it. So each is read in turn, twice: ledger, node, ledger, node. What was on the node both times was there at the
second reading of the ledger too, and an entry that both readings of the ledger have was there when the node was read first:
what both comparisons find is so. The second one is made only if the first one finds something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from agent import metrics
from agent.aio import in_thread
from agent.errdefs import OrlopError
from agent.leaks import (
    cgroups,
    chains,
    directories,
    foreign,
    foreign_directories,
    held,
    inits,
    leases,
    mounts,
    pins,
    shims,
    sockets,
    strays,
)
from agent.leaks.finding import OWNERS, Finding, State, Thing
from agent.leaks.foreign import Answer, Foreign
from agent.leaks.look import GRACE, Detector, Look, Network
from agent.leaks.node import Node
from agent.leaks.owned import LedgerRead, Owned, Remembered, nothing_remembered
from agent.leaks.owners import NAMESPACE, Runtime
from agent.leaks.places import Places

ReadLedger = Callable[[], Awaitable[LedgerRead]]
"""Reads every entry: from a running daemon's memory, its admin API, or the files of one that is down. Raises OrlopError."""

Ask = Callable[[Sequence[Runtime]], Awaitable[list[Answer]]]

SETTLE = 1.0
"""Seconds between the two looks: a cleanup that is just under way gets that long to write down what it did."""

DETECTORS: tuple[tuple[Thing, Detector], ...] = (
    (Thing.SHIM, shims.find),
    (Thing.RUNC_INIT, inits.find),
    (Thing.PROCESS, strays.find),
    (Thing.MOUNT, mounts.find),
    (Thing.NETNS, pins.find_network),
    (Thing.IPCNS, pins.find),
    (Thing.CNI, leases.find),
    (Thing.CHAIN, chains.find),
    (Thing.CGROUP, cgroups.find),
    *((place.kind, place) for place in directories.PLACES),
    (Thing.BUNDLE, foreign_directories.find),
    (Thing.SOCKET, sockets.find),
    (Thing.TASK, held.find_missing),
    (Thing.TASK, held.find_pending),
)
"""Each with what it looks for, for the case that it can't look."""


async def audit(
    ledger: ReadLedger,
    places: Places,
    network: Network,
    *,
    ask: Ask = foreign.ask,
    remembered: Remembered = nothing_remembered,
    grace: float = GRACE,
    settle: float = SETTLE,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Find what is not as the ledger says, and as other runtimes on the node say; set the gauges.

    Only reads, in a thread. `remembered` tells which of what bears nobody's name was ours. `grace`: what could be another runtime's and is
    younger, in seconds, is not judged.

    Raises:
        OSError: /proc or the cgroup file system can't be read.
        OrlopError: from `ledger`.
    """

    async def look() -> list[Finding]:
        read = await ledger()
        node = await in_thread(lambda: Node.take(places, served=read.served, now=clock()))
        # After the node: what was made by then is listed, or young.
        answers = await ask(node.runtimes)
        return await in_thread(_compare, Look(node, Owned(read.resources), network, _foreign(node, answers), grace))

    found = await look()
    if any(finding.state is not State.PENDING for finding in found):
        await sleep(settle)
        seen = {finding.key for finding in found}
        found = [finding for finding in await look() if finding.key in seen or finding.state is State.PENDING]
    found = await _attributed(found, remembered)
    _count(found, clock())
    return found


async def _attributed(found: list[Finding], remembered: Remembered) -> list[Finding]:
    """Addresses, namespaces and the like look the same whoever made them; but what the ledger once had was made by us."""
    nobodys = {finding.once for finding in found if finding.once and finding.owner == "unknown" and finding.state is State.LEAKED}
    ours: Collection[str] = ()
    if nobodys:
        with suppress(OrlopError):  # then they stay nobody's
            ours = await remembered(nobodys)
    return [replace(one, owner="orlop") if one.owner == "unknown" and one.once in ours else one for one in found]


def _foreign(node: Node, answers: Sequence[Answer]) -> Foreign:
    shims = (shim.id for shim in node.shims.values() if shim.namespace != NAMESPACE)
    monitors = (monitor.container for monitor in node.monitors.values() if monitor.podman)
    return Foreign(answers, ["another orlop serve"] * node.another_orlop, frozenset((*shims, *monitors)))


def _compare(look: Look) -> list[Finding]:
    findings: list[Finding] = []
    for thing, detector in DETECTORS:
        try:
            for finding in detector(look):
                findings.append(finding)  # noqa: PERF402  # those before the error count
        except (OSError, OrlopError) as error:
            findings.append(_blind(thing, look.places, error))
    return findings


def _blind(thing: Thing, places: Places, error: OSError | OrlopError) -> Finding:
    path = error.filename if isinstance(error, OSError) else None
    return Finding(
        kind=thing,
        what=str(path or places.state_dir),
        owner="unknown",
        state=State.UNKNOWN,
        why=f"it can't be looked at, so leaks of this kind may be there: {error}",
        releases="An audit as root, or the repair of what that error names",
    )


def _count(found: Sequence[Finding], now: float) -> None:
    leaked = [finding for finding in found if finding.state is State.LEAKED]
    for thing in Thing:
        metrics.missing.labels(thing.value).set(sum(finding.kind is thing and finding.state is State.MISSING for finding in found))
        for owner in OWNERS:
            these = [finding for finding in leaked if (finding.kind, finding.owner) == (thing, owner)]
            metrics.leaks.labels(thing.value, owner).set(len(these))
            ages = [now - finding.since for finding in these if finding.since is not None]
            metrics.oldest_leak.labels(thing.value, owner).set(max(ages, default=0))
