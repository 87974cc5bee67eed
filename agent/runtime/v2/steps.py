"""What every step of teardown has: a name, a failpoint, a budget and a place in the metrics. Their order is `cleanup`'s alone."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from agent import failpoints, log, metrics, timeouts
from agent.aio import within
from agent.store.kinds import Kind
from agent.store.release import PartlyReleased

_log = log.get("runtime")

BUDGETS: dict[str, float] = {
    "gate": timeouts.IN_FLIGHT,
    "kill": timeouts.TASK_KILL + timeouts.EXIT_AFTER_KILL,
    "task_delete": timeouts.TASK_DELETE,
    "shutdown": timeouts.SHIM_SHUTDOWN,
    "shim_dead": timeouts.EXIT_AFTER_KILL + timeouts.EXIT_AFTER_SHIM_KILL,
    "close": timeouts.TEARDOWN_STEP,
    "identify": timeouts.TEARDOWN_STEP,
    "shim_delete": timeouts.SHIM_DELETE + timeouts.EXIT_AFTER_KILL,  # the command has its own; the rest is to see it end
    "verify": timeouts.TEARDOWN_STEP,
    "reap": 2 * timeouts.EXIT_AFTER_SHIM_KILL + timeouts.ENGINE,
    "unmount": timeouts.TEARDOWN_STEP,
    "engine_state": timeouts.TEARDOWN_STEP,
    "cgroup": timeouts.TEARDOWN_STEP,
    "bundle": timeouts.TEARDOWN_STEP,
    "work_dir": timeouts.TEARDOWN_STEP,
    "socket": timeouts.TEARDOWN_STEP,
    "shim_cgroup": timeouts.TEARDOWN_STEP,
    "shim_bundle": timeouts.TEARDOWN_STEP,
    "publish": timeouts.TEARDOWN_STEP,
    "drop": timeouts.TEARDOWN_STEP,
}
"""Seconds for each step; when they are over, what the step was for stays owned."""


class Subject(Protocol):
    """What a step is about: a shim or a task."""

    @property
    def id(self) -> str: ...


N = TypeVar("N")
S = TypeVar("S", bound=Subject)
P = ParamSpec("P")
R = TypeVar("R")

_Step = Callable[Concatenate[N, S, P], Coroutine[Any, Any, R]]


def step(name: str) -> Callable[[_Step[N, S, P, R]], _Step[N, S, P, R]]:
    """Make a function of (node, shim or task, ...) a step. Its failure is logged and counted here, once, whoever tolerates it."""

    def decorate(function: _Step[N, S, P, R]) -> _Step[N, S, P, R]:
        async def passed(node: N, subject: S, *args: P.args, **kwargs: P.kwargs) -> R:
            await failpoints.hit(f"cleanup.{name}")
            return await function(node, subject, *args, **kwargs)

        @functools.wraps(function)
        async def timed(node: N, subject: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            started = time.monotonic()
            try:
                return await within(BUDGETS[name], passed(node, subject, *args, **kwargs), f"{name.replace('_', ' ')} of {subject.id}")
            except Exception as error:
                metrics.teardown_step_failures.labels(name).inc()
                _log.warning("teardown step failed", step=name, id=subject.id, error=str(error))
                raise
            finally:
                elapsed = time.monotonic() - started
                metrics.teardown_step_seconds.labels(name).observe(elapsed)
                _log.debug("teardown step", step=name, id=subject.id, ms=round(elapsed * 1000, 1))

        return timed

    return decorate


async def failure_of(work: Awaitable[object]) -> Exception | None:
    """Do it, and return why it failed: for what must not hold up what comes behind it."""
    try:
        await work
    except Exception as error:
        return error
    return None


class Failures:
    """Collects the failures of steps that don't depend on each other."""

    def __init__(self) -> None:
        self._errors: list[Exception] = []
        self._still_uses: set[Kind] = set()

    @contextmanager
    def kept(self, *uses: Kind) -> Iterator[None]:
        """Keep a failure of the block; what is left then uses these kinds."""
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            self._still_uses.update(uses)

    def raise_first(self) -> None:
        """Raise the first failure, if there is one, with the others as notes."""
        if self._errors:
            for other in self._errors[1:]:
                self._errors[0].add_note(f"also: {other}")
            raise self._errors[0]

    def raise_partly_released(self, subject: str) -> None:
        """Raise PartlyReleased, if there is a failure."""
        if self._errors:
            reasons = "; ".join(map(str, self._errors))
            raise PartlyReleased(f"{subject} has no process any more, but is not released: {reasons}", self._still_uses) from self._errors[
                0
            ]
