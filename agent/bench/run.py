"""A whole run: opens the sockets, lets the families measure, and leaves nothing behind. Called by `agent.cli.bench`."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from agent.bench import critest, crowd, execs, images, logs, measurements, parallel, pods
from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.session import Session
from agent.bench.target import Target
from agent.errdefs import OrlopError

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


@asynccontextmanager
async def run(
    plan: Plan, sockets: Sequence[str], say: Callable[[str], None], make: Callable[[str, Plan], Target] = Target
) -> AsyncIterator[Results]:
    """Measure what the plan wants on every socket, by turns; the first is what the others are compared with.

    The results are there for the block; at its end what was made is removed, as it is when this is cancelled before. `make` makes a
    Target; another one in tests only.

    Raises:
        OrlopError: before the block, a socket that isn't served or can't have the image; after it, something could not be removed.
    """
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(make(socket, plan)) for socket in sockets]
        _tell_apart(targets)
        results = Results([row for row in measurements.table(plan.numbers) if plan.wants(row.family)], [target.name for target in targets])
        for target in targets:
            target.results = results
            if directory := plan.critest.get(target.socket):
                await critest.read(results, target.name, directory)
        session = Session(plan, targets, results, say)
        for names, measure in _FAMILIES:
            if any(plan.wants(name) for name in names):
                await measure(session)
                for target in targets:
                    try:
                        await target.remove_all()
                    except OrlopError as error:  # tried again at the end
                        say(f"{target.name}: {error}")
        yield results


def _tell_apart(targets: Sequence[Target]) -> None:
    """Runtimes of one name and version are told apart by their sockets."""
    names = Counter(target.name for target in targets)
    for target in targets:
        if names[target.name] > 1:
            target.name = f"{target.name} at {target.socket}"
