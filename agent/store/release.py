"""Releasing: walks resources in the ledger's order, each by the release function of its kind.

`agent.daemon` registers the release functions of layer 4; the verbs of `agent.pods` call `release_owned`; `run_pending` tries
again what failed. A walk is detached from its caller: it goes on when the caller is gone. Per resource one attempt runs at a
time, whoever asks. A resource is released only when nothing in the ledger uses it any more, so a failure holds up what the
failed resource uses, and nothing else (invariant 7).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import tenacity

from agent import failpoints, log, timeouts
from agent.aio import Supervisor, within
from agent.errdefs import Busy, FailedPrecondition, Internal
from agent.store.kinds import Kind
from agent.store.ledger import Ledger
from agent.store.resource import Resource, ResourceId

_log = log.get("store")

Releaser = Callable[[Resource], Awaitable[None]]
"""Makes sure that the resource is gone, whether or not it ever came to be; doing it again is harmless. Checks the identity
of what it ends (inode, start time) against the resource's data. Must not release the resource through `Releases` itself."""

DEFAULT_WAIT = tenacity.wait_exponential_jitter(max=timeouts.RELEASE_RETRY, jitter=1)
"""From a second to RELEASE_RETRY between two attempts: an EBUSY often ends soon, a hung file system after hours."""
PENDING_INTERVAL = 1.0
"""Seconds between two looks at what is due; the shortest wait between two attempts."""


class Blocked(FailedPrecondition):
    """The release was not tried, because something that uses the resource is still in the ledger. It comes after that."""


class PartlyReleased(Busy):
    """Raised by a release function: what is left of the resource uses only the kinds `still_uses`; others need not wait.

    So a rootfs that is pinned after its container's last process has ended keeps the snapshot, but not the pod's network
    (invariant 6, decisions.md 20).
    """

    def __init__(self, message: str, still_uses: Iterable[Kind]) -> None:
        super().__init__(message)
        self.still_uses = frozenset(still_uses)


class Releases:
    """The release walker of one daemon.

    Args:
        ledger: whose entries are released.
        clock: Unix seconds.
        sleep: the pause of `run_pending`.
        wait: how long until the next attempt, from the number of failed ones.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        wait: tenacity.wait.wait_base = DEFAULT_WAIT,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._wait = wait
        self._releasers: dict[Kind, Releaser] = {}
        self._supervisor = Supervisor("releases")
        self._flights: dict[ResourceId, asyncio.Task[Exception | None]] = {}
        self._background: set[str] = set()
        # Not stored: after a restart the whole resource is taken to be in use, until its next attempt says otherwise.
        self._still_uses: dict[ResourceId, frozenset[Kind]] = {}
        self._let_go: dict[ResourceId, frozenset[Kind]] = {}

    def register(self, kind: Kind, releaser: Releaser) -> None:
        """Set the release function of a kind."""
        self._releasers[kind] = releaser

    def no_longer_uses(self, name: ResourceId, kinds: Iterable[Kind]) -> None:
        """Say that an entry has let go of these kinds, as was looked at: their release needs not wait for its own.

        Holds until a release of the entry fails.
        """
        if self._ledger.get(*name) is not None:
            self._let_go[name] = frozenset(kinds)

    async def release(self, resources: Iterable[Resource]) -> list[tuple[Resource, Exception]]:
        """Release these, users before what they use, side by side where nothing depends on the other.

        Returns those that are not gone, with the reason: the release function's error (it is retried with growing waits), or
        `Blocked`. The rest is dropped from the ledger. Cancelling the caller ends its waiting only.
        """
        wanted = self._ledger.in_release_order(resources)
        if not wanted:
            return []
        return await self._supervisor.detached(self._walk(wanted), name=f"release for {wanted[0].owner}")

    async def release_owned(self, *, sandbox: str | None = None, container: str | None = None) -> list[tuple[Resource, Exception]]:
        """`release` of everything that the sandbox (its containers included) or the container owns."""
        return await self.release(self._ledger.owned(sandbox=sandbox, container=container))

    async def run_pending(self, stop: asyncio.Event) -> None:
        """Until `stop` is set: try again what is due, and what could not be written. What hangs holds up no other owner's."""
        while not stop.is_set():
            self.start_due()
            await self._sleep(PENDING_INTERVAL)

    def start_due(self) -> None:
        """Start the releases that are due, one walk per owner, and writes that are pending. Returns at once."""
        if self._ledger.unwritten:
            self._start_once("pending writes", self._ledger.flush)
        groups: dict[str, list[Resource]] = {}
        for resource in self._ledger.due(self._clock()):
            groups.setdefault(resource.owner, []).append(resource)
        for owner, resources in groups.items():
            if any(self._user(resource) is None for resource in resources):
                self._start_once(f"retries for {owner}", functools.partial(self._walk, resources))

    async def stop(self, budget: float) -> None:
        """Let running releases end for `budget` seconds, then cancel them; what is not released stays in the ledger."""
        await self._supervisor.stop(budget)

    def _start_once(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        if name not in self._background:
            self._background.add(name)
            self._supervisor.start(work(), name=name).add_done_callback(lambda _: self._background.discard(name))

    async def _walk(self, resources: list[Resource]) -> list[tuple[Resource, Exception]]:
        """Release these, which come in release order."""
        self._ledger.releasing(resources)
        steps: list[tuple[Resource, asyncio.Task[Exception | None]]] = []
        for resource in resources:
            users = [step for user, step in steps if user.uses(resource) and not self._has_let_go(user, resource)]
            steps.append((resource, self._supervisor.start(self._step(resource, users), name=str(resource.id))))
        return [(resource, error) for resource, step in steps if (error := await step) is not None]

    async def _step(self, resource: Resource, users: list[asyncio.Task[Exception | None]]) -> Exception | None:
        if users:
            await asyncio.wait(users)
        if self._ledger.get(*resource.id) is None:
            self._forget(resource.id)
            return None
        if (user := self._user(resource)) is not None:
            return Blocked(f"{resource.id} is released after {user.id}, which is {user.state}: {user.error or 'its release has not ended'}")
        flight = self._flights.get(resource.id)
        if flight is None:
            flight = self._flights[resource.id] = self._supervisor.start(self._attempt(resource.id), name=f"release of {resource.id}")
            flight.add_done_callback(lambda _: self._flights.pop(resource.id, None))
        return await asyncio.shield(flight)

    def _user(self, resource: Resource) -> Resource | None:
        """An entry that uses this one, in the walk or not."""
        for other in self._ledger.owned(sandbox=resource.sandbox):
            if other.uses(resource, self._still_uses.get(other.id)) and not self._has_let_go(other, resource):
                return other
        return None

    def _has_let_go(self, user: Resource, resource: Resource) -> bool:
        return resource.kind in self._let_go.get(user.id, ())

    def _forget(self, name: ResourceId) -> None:
        """What is known of how the resource uses others."""
        self._still_uses.pop(name, None)
        self._let_go.pop(name, None)

    async def _attempt(self, name: ResourceId) -> Exception | None:
        resource = self._ledger.get(*name)
        if resource is None:
            return None
        try:
            await failpoints.hit("store.release.act")
            releaser = self._releasers.get(name.kind)
            if releaser is None:
                raise Internal(f"no release function is registered for {name.kind}")
            await within(timeouts.RELEASE, releaser(resource), f"the release of {name}")
            await failpoints.hit("store.release.drop")
        except Exception as error:
            self._failed(resource, error)
            return error
        self._forget(name)
        self._ledger.drop_nowait(*name)
        return None

    def _failed(self, resource: Resource, error: Exception) -> None:
        self._forget(resource.id)
        if isinstance(error, PartlyReleased):
            self._still_uses[resource.id] = error.still_uses
        attempts = resource.attempts + 1
        pause = self._pause(attempts)
        _log.warning(
            "a release failed and is tried again",
            resource=str(resource.id),
            sandbox=resource.sandbox,
            container=resource.container,
            error=str(error),
            attempts=attempts,
            again_in=round(pause, 1),
        )
        self._ledger.failed_nowait(*resource.id, str(error) or type(error).__name__, self._clock() + pause)

    def _pause(self, attempts: int) -> float:
        """tenacity's strategy, asked for the number of failed attempts that is stored: a restart goes on where it was."""
        state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        state.attempt_number = attempts
        return float(self._wait(state))
