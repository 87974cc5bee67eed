"""A whole run: opens the sockets, lets the families measure, and leaves nothing behind. Called by `agent.cli.bench`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from agent.bench import critest, crowd, execs, images, logs, measurements, parallel, pods
from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.session import Session
from agent.bench.target import Target

_FAMILIES: tuple[tuple[tuple[str, ...], Callable[[Session], Awaitable[None]]], ...] = (
    (("pods",), pods.measure),
    (("parallel",), parallel.measure),
    (("exec",), execs.measure),
    (("logs",), logs.measure),
    (("images",), images.measure),
    (crowd.FAMILIES, crowd.measure),
)
"""In this order: the daemons' memory before and after single pods is told first, and what restarts them comes last."""

FAMILIES = tuple(name for names, _ in _FAMILIES for name in names)


async def run(plan: Plan, sockets: Sequence[str], say: Callable[[str], None], target: Callable[[str, Plan], Target] = Target) -> Results:
    """Measure what the plan wants on every socket, by turns; the first is what the others are compared with.

    Cancelled or not, what was made is removed before it returns or raises. `target` makes a Target; another one in tests only.

    Raises:
        OrlopError: a socket that isn't served or can't have the image; something could not be removed.
    """
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(target(socket, plan)) for socket in sockets]
        _tell_apart(targets)
        results = Results([row for row in measurements.table(plan.numbers) if plan.wants(row.family)], [each.name for each in targets])
        for each in targets:
            if directory := plan.critest.get(each.socket):
                await critest.read(results, each.name, directory)
        session = Session(plan, targets, results, say)
        for each in targets:
            each.results = results
        for names, measure in _FAMILIES:
            if any(plan.wants(name) for name in names):
                await measure(session)
                for each in targets:
                    await each.remove_all()
        return results


def _tell_apart(targets: Sequence[Target]) -> None:
    """Runtimes of one name and version are told apart by their sockets."""
    names = Counter(target.name for target in targets)
    for target in targets:
        if names[target.name] > 1:
            target.name = f"{target.name} at {target.socket}"
