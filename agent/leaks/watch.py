"""The audit that the daemon, and `orlop watch`, make again and again: metrics, and a line in the log for what is new and what is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from agent import log, metrics
from agent.errdefs import OrlopError
from agent.leaks import foreign
from agent.leaks.audit import Ask, ReadLedger, audit
from agent.leaks.finding import OWNERS, Finding, State, Thing
from agent.leaks.look import GRACE, Network
from agent.leaks.owned import Remembered, nothing_remembered
from agent.leaks.places import Places

_log = log.get("leaks")

Release = Callable[[Sequence[Finding]], Awaitable[None]]
"""`agent.leaks.own.OwnLeaks`: gets what each audit found, and nothing after one that failed. Raises OrlopError."""

Known = Mapping[object, Finding]
"""By `_key`."""


async def watch(
    ledger: ReadLedger,
    places: Places,
    network: Network,
    *,
    pauses: Iterable[float],
    grace: float = GRACE,
    ask: Ask = foreign.ask,
    remembered: Remembered = nothing_remembered,
    release: Release | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Audit once after each of `pauses`, in seconds.

    Ends with `pauses`, or by cancellation. What a single audit can't look at ends it never.
    """
    known: Known = {}
    problem = ""
    look = partial(audit, ledger, places, network, ask=ask, remembered=remembered, grace=grace, sleep=sleep, clock=clock)
    for pause in pauses:
        await sleep(pause)
        try:
            found = await look()
        except (OSError, OrlopError) as error:
            if release is not None:
                await release(())
            metrics.audits.labels("failed").inc()
            if str(error) != problem:
                problem = str(error)
                _log.warning("the audit can't look at the node", error=problem)
            continue
        problem = ""
        _count(found, clock())
        known = _tell(found, known)
        if release is not None:
            try:
                await release(found)
            except OrlopError as error:
                _log.warning("leaks are not released by the agent itself", reason=str(error))


def _count(found: Sequence[Finding], now: float) -> None:
    unknown = [(finding.kind, finding.owner) for finding in found if finding.state is State.UNKNOWN]
    for thing in Thing:
        for owner in OWNERS:
            metrics.unknown.labels(thing.value, owner).set(unknown.count((thing, owner)))
    metrics.audits.labels("partial" if unknown else "complete").inc()
    metrics.last_audit.set(now)


def _tell(found: Sequence[Finding], known: Known) -> Known:
    """Log what is new and what is gone; what is known from now on."""
    # What is pending was told when its release failed, and is told with each attempt.
    current: dict[object, Finding] = {}
    for finding in found:
        if finding.state is not State.PENDING:
            current.setdefault(_key(finding), finding)
    for key in current.keys() - known.keys():
        _report(current[key])
    blind = {finding.kind for finding in found if finding.state is State.UNKNOWN}
    for key in known.keys() - current.keys():
        finding = known[key]
        if finding.state is not State.UNKNOWN and finding.kind in blind:
            current[key] = finding  # not seen is not gone, where something can't be looked at
        else:
            _log.info("found no more", kind=finding.kind.value, what=finding.what, owner=finding.owner, state=finding.state.value)
    return current


def _key(finding: Finding) -> object:
    """What is told once. Of what can't be looked at one for each kind and owner: it may be another process each time."""
    return (finding.kind, finding.owner) if finding.state is State.UNKNOWN else finding.key


def _report(finding: Finding) -> None:
    if finding.state is State.LEAKED:
        metrics.leaks_found.labels(finding.kind.value, finding.owner).inc()
        if finding.kind is Thing.RUNC_INIT:
            metrics.runc_init_found.labels(finding.stage).inc()
    _log.warning(f"audit: {finding.state}", **finding.to_json() | {"kind": finding.kind.value, "state": finding.state.value})
