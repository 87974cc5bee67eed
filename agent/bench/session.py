"""A run over several sockets: whose turn it is, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.target import Target
from agent.errdefs import DeadlineExceeded, FailedPrecondition, InvalidArgument, OrlopError, Unimplemented

_FINAL = (DeadlineExceeded, FailedPrecondition, InvalidArgument, Unimplemented)
"""Failures that another try would not change, or that took too long to see them again."""
_PATIENCE = 3
"""Failed turns after which a socket has no more of them."""


@dataclass
class Session:
    """What the families measure with. `say` shows people how far it is."""

    plan: Plan
    targets: Sequence[Target]
    results: Results
    say: Callable[[str], None] = field(default=lambda text: None)

    async def rounds(
        self,
        family: str,
        count: int,
        turn: Callable[[Target], Awaitable[None]],
        targets: Sequence[Target] | None = None,
        *,
        tidy: bool = False,
    ) -> list[Target]:
        """Let every socket, or those given, have `count` turns, one after the other, in each round another one first: what changes
        on the machine meanwhile changes for all.

        A turn that fails stands in the report, and the next one is a new try, but not for ever. `tidy`: no turn leaves pods, so that
        those of one that failed are removed at once. Returns the sockets that did not give up.
        """
        everyone = self.targets if targets is None else targets
        failures: dict[Target, list[str]] = {target: [] for target in everyone}
        left = list(everyone)
        for number in range(count):
            self.say(f"{family}: {number + 1} of {count}")
            first = number % max(1, len(everyone))
            for target in [*everyone[first:], *everyone[:first]]:
                if target not in left:
                    continue
                try:
                    await turn(target)
                except OrlopError as error:
                    failures[target].append(str(error))
                    tidied = not tidy or await self._tidied(target)
                    if isinstance(error, _FINAL) or len(failures[target]) == min(_PATIENCE, count) or not tidied:
                        left.remove(target)
        for target, reasons in failures.items():
            if reasons:
                times = f"{len(reasons)} turns failed, the first: " if len(reasons) > 1 else ""
                self.results.failed(family, target.name, times + reasons[0])
        return left

    async def take(self, target: Target, key: str, value: Callable[[], Awaitable[float]]) -> None:
        """A sample that a runtime or this machine may not have, which is no failure of the family."""
        try:
            target.add(key, await value())
        except OrlopError as error:
            self.results.absent(key, target.name, str(error))

    async def _tidied(self, target: Target) -> bool:
        """Remove what a failed turn left; whether that went well."""
        try:
            await target.remove_all()
        except OrlopError:
            return False
        return True
