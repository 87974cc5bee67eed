"""Failpoints under simulation: counted, armed for one world, and a `crash` that kills the incarnation that passes them.

In place of `agent.failpoints.hit`, whose little language and process-wide state are tried in `test_failpoints`.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import agent
from agent import failpoints
from agent.errdefs import Internal
from agent.runtime.v2.steps import BUDGETS
from tests.unit.simulation.clock import CURRENT

Action = Literal["crash", "error", "delay", "hang"]
ACTIONS: tuple[Action, ...] = ("crash", "error", "delay", "hang")

_NOT_HERE = frozenset({"ttrpc", "content", "images", "web"})
"""Packages that the simulation has none of."""
_NOT_PASSED = frozenset({
    "logs.reopen", "network.check.exec", "network.gc.exec", "network.status.exec", "runtime.task.update", "snapshots.unpack.worker",
    "snapshots.commit.rename", "snapshots.delete_layer.rename", "leaks.reap.act",
})  # fmt: skip
"""Of verbs that no schedule calls."""


@cache
def names() -> tuple[str, ...]:
    """All failpoints of the agent, by its source."""
    found: set[str] = set()
    for path in Path(agent.__path__[0]).rglob("*.py"):
        for name in re.findall(r'failpoints\.hit\(f?"([^"]+)"\)', path.read_text()):
            found.update(_expanded(name))
    return tuple(sorted(found))


def _expanded(name: str) -> list[str]:
    if name == "cleanup.{name}":
        return [f"cleanup.{step}" for step in BUDGETS]
    if name == "network.{step}.exec":
        return [f"network.{step}.exec" for step in ("add", "delete", "check", "gc", "status")]
    return [name]


@cache
def simulated_names() -> tuple[str, ...]:
    """Those that a schedule can pass."""
    return tuple(name for name in names() if name.partition(".")[0] not in _NOT_HERE and name not in _NOT_PASSED)


@dataclass
class Armed:
    action: Action
    nth: int
    passed: int = 0


class Failpoints:
    """Those of one world."""

    def __init__(self) -> None:
        self.armed: dict[str, Armed] = {}
        self.fired: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.crash: Callable[[], None] = lambda: None
        self._over = asyncio.Event()

    def arm(self, name: str, action: Action, nth: int) -> None:
        self.armed[name] = Armed(action, nth)

    def disarm(self) -> None:
        """Switch all off, and let go what hangs."""
        self.armed.clear()
        self._over.set()
        self._over = asyncio.Event()

    async def hit(self, name: str) -> None:
        life = CURRENT.get()
        if life is None:
            return
        life.check()
        self.passed[name] += 1
        if (armed := self.armed.get(name)) is None:
            return
        armed.passed += 1
        if armed.passed != armed.nth:
            return
        self.fired[f"{name} {armed.action}"] += 1
        match armed.action:
            case "crash":
                self.crash()
                raise asyncio.CancelledError
            case "error":
                raise Internal(f"failpoint {name}: error")
            case "delay":
                await asyncio.sleep(2)
            case "hang":
                await self._over.wait()


@contextmanager
def installed(points: Failpoints) -> Iterator[None]:
    """Use them."""
    original = failpoints.hit
    failpoints.hit = points.hit
    try:
        yield
    finally:
        failpoints.hit = original


if __name__ == "__main__":
    print(*names(), sep="\n")
