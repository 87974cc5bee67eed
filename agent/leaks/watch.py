"""The audit that the daemon makes again and again: metrics, and one line in the log for what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent import log, metrics
from agent.errdefs import OrlopError
from agent.leaks.audit import ReadLedger, audit
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Network
from agent.leaks.places import Places

_log = log.get("leaks")
INTERVAL = 60.0


async def watch(
    ledger: ReadLedger,
    places: Places,
    network: Network,
    *,
    interval: float = INTERVAL,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Audit every `interval` seconds, the first time after one: until then a start is still clearing up. Ends by cancellation."""
    known: dict[object, Finding] = {}
    problem = ""
    while True:
        await sleep(interval)
        try:
            found = await audit(ledger, places, network, sleep=sleep)
        except (OSError, OrlopError) as error:
            if str(error) != problem:
                problem = str(error)
                _log.warning("the audit can't look at the node", error=problem)
            continue
        problem = ""
        # What is pending was told when its release failed, and is told with each attempt.
        current: dict[object, Finding] = {finding.key: finding for finding in found if finding.state is not State.PENDING}
        for key in current.keys() - known.keys():
            _report(current[key])
        for key in known.keys() - current.keys():
            _log.info("found no more", kind=known[key].kind, what=known[key].what)
        known = current


def _report(finding: Finding) -> None:
    if finding.state is State.LEAKED:
        metrics.leaks_found.labels(finding.kind.value, finding.owner).inc()
        if finding.kind is Thing.RUNC_INIT:
            metrics.runc_init_found.inc()
    text = {"kind": finding.kind.value, "what": finding.what, "owner": finding.owner, "why": finding.why, "releases": finding.releases}
    _log.warning(f"audit: {finding.state}", **text)
