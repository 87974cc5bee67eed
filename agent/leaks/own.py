"""What the daemon releases by itself of what its audits find: its own leaks, and of those only what is sure.

Sure is what is certainly ours, what two audits in a row have found, and what nothing in the ledger can be meant to own: what a row
that was set aside is about isn't touched, and nothing at all while a whole file of the store is. `agent.leaks.watch` calls this after
each audit; `orlop reap` is the same by hand, for other owners as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from agent import log, metrics, timeouts
from agent.aio import within
from agent.errdefs import DeadlineExceeded
from agent.leaks.finding import Finding, Thing
from agent.leaks.reap import Reaper, Step, plan

_log = log.get("leaks")

_FIRST_RETRY, _LAST_RETRY = 60.0, 3600.0
"""Seconds until what could not be released is tried again; doubled each time."""


@dataclass(frozen=True)
class Doubts:
    """What the ledger may own and doesn't know of."""

    reason: str = ""
    """Why nothing can be told at all; empty: it can."""
    names: frozenset[str] = frozenset()
    """Sandboxes, containers and keys in rows that could not be read."""

    def concern(self, finding: Finding) -> bool:
        texts = (finding.what, finding.why, finding.once, *map(str, finding.targets))
        return any(name in text for name in self.names for text in texts)


@dataclass(frozen=True)
class _Failure:
    times: int
    again: float


class OwnLeaks:
    """Releases them; called with what each audit found, in turn. Nothing is remembered across a restart.

    Args:
        reaper: compares each thing again right before it acts.
        doubts: asked before each turn. Raises OrlopError.
        clock: Unix seconds.
    """

    def __init__(self, reaper: Reaper, doubts: Callable[[], Awaitable[Doubts]], clock: Callable[[], float]) -> None:
        self._reaper = reaper
        self._doubts = doubts
        self._clock = clock
        self._seen: Collection[object] = ()
        self._failures: dict[object, _Failure] = {}
        self._told = ""

    async def __call__(self, found: Sequence[Finding]) -> None:
        """Release what is due, dependents first. Nothing found, or an audit that failed: the next one begins anew.

        Raises:
            OrlopError: from `doubts`; nothing was released.
        """
        ours = [finding for finding in plan(found, owners=("orlop",)) if finding.sure == "certain"]
        before, self._seen = self._seen, {finding.key for finding in ours}
        self._failures = {key: failure for key, failure in self._failures.items() if key in self._seen}
        twice = [finding for finding in ours if finding.key in before and self._is_due(finding)]
        if not twice:
            return
        doubts = await self._doubts()
        if doubts.reason != self._told:
            self._told = doubts.reason
            if doubts.reason:
                _log.warning("leaks are not released by the agent itself", reason=doubts.reason)
        if doubts.reason:
            return
        for finding in twice:
            # Of a socket only the shim's id could tell whose it is, and its name has but a hash of that.
            if doubts.concern(finding) or (doubts.names and finding.kind is Thing.SOCKET):
                continue
            self._count(finding, await self._release(finding))

    def _is_due(self, finding: Finding) -> bool:
        failure = self._failures.get(finding.key)
        return failure is None or failure.again <= self._clock()

    async def _release(self, finding: Finding) -> list[Step]:
        try:
            return await within(timeouts.RELEASE, self._reaper.release(finding), f"the release of {finding.what}")
        except DeadlineExceeded as error:
            _log.warning("reap: failed", kind=finding.kind.value, what=finding.what, owner=finding.owner, detail=str(error))
            return [Step(finding, finding.what, "failed", str(error))]

    def _count(self, finding: Finding, steps: Sequence[Step]) -> None:
        labels = (finding.kind.value, finding.owner)
        if any(step.outcome in ("refused", "failed") for step in steps):
            times = self._failures[finding.key].times + 1 if finding.key in self._failures else 1
            self._failures[finding.key] = _Failure(times, self._clock() + min(_FIRST_RETRY * 2 ** (times - 1), _LAST_RETRY))
            metrics.leak_reap_failures.labels(*labels).inc()
            return
        self._failures.pop(finding.key, None)
        if any(step.outcome == "released" for step in steps):
            metrics.leaks_reaped.labels(*labels).inc()
            if finding.kind is Thing.RUNC_INIT:
                metrics.runc_init_reaped.labels(finding.stage).inc()
