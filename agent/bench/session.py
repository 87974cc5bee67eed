"""A run over several sockets: whose turn it is, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.target import Target
from agent.errdefs import OrlopError


@dataclass
class Session:
    """What the families measure with. `say` shows people how far it is."""

    plan: Plan
    targets: Sequence[Target]
    results: Results
    say: Callable[[str], None] = field(default=lambda text: None)

    async def rounds(
        self, family: str, count: int, turn: Callable[[Target], Awaitable[None]], targets: Sequence[Target] | None = None
    ) -> list[Target]:
        """Let every socket, or those given, have `count` turns, one after the other, in each round another one first: what changes
        on the machine meanwhile changes for all. A socket whose turn fails has no further ones, and the reason stands in the report.

        Returns the sockets that did not fail.
        """
        everyone = self.targets if targets is None else targets
        left = list(everyone)
        for number in range(count):
            self.say(f"{family}: {number + 1} of {count}")
            first = number % max(1, len(everyone))
            for target in [*everyone[first:], *everyone[:first]]:
                if target in left and not await self.attempt(family, target, turn):
                    left.remove(target)
        return left

    async def attempt(self, family: str, target: Target, turn: Callable[[Target], Awaitable[None]]) -> bool:
        """One turn of one socket; whether it went well."""
        try:
            await turn(target)
        except OrlopError as error:
            self.results.failed(family, target.name, str(error))
            return False
        return True

    async def take(self, target: Target, key: str, value: Callable[[], Awaitable[float]]) -> None:
        """A sample that a runtime or this machine may not have, which is no failure of the family."""
        try:
            target.add(key, await value())
        except OrlopError as error:
            self.results.absent(key, target.name, str(error))
