"""The ledger: every external resource is written here before it is acquired, and leaves only when it is gone.

    await ledger.intend(Intent(Kind.NETNS, path, sandbox=id))     committed before the act
    ...make it...
    await ledger.hold(Kind.NETNS, path, {"inode": inode})         with what its release needs to know
    ...release it (idempotent)...
    await ledger.drop(Kind.NETNS, path)

Verbs of `agent.pods` intend; whoever acts holds; `agent.store.release` drops. The daemon's start replays what is left. Reads
are answered from memory and never wait. A write changes memory at once, in the order of the calls, and the databases in the
same order, each on its own thread (a stalling disk must not delay what lives in /run).

Acquiring needs a ledger that can be written, releasing doesn't (invariant 11): `intend` and `hold` raise Unavailable, while
`drop`, `failed` and `releasing` take effect in memory, and their writes stay pending until they work (`flush`). If the daemon
dies before that, the entry is back after the restart and is released once more.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from agent import failpoints
from agent.errdefs import AlreadyExists, NotFound, Unavailable
from agent.store import journal, rows
from agent.store.database import Database
from agent.store.journal import Entry
from agent.store.kinds import KINDS, RELEASE_ORDER, Kind, KindInfo, Scope
from agent.store.mirror import Mirror, in_release_order
from agent.store.resource import JSON, Intent, Resource, ResourceId, State

__all__ = [
    "JSON", "KINDS", "RELEASE_ORDER", "Entry", "Intent", "Kind", "KindInfo", "Ledger", "Resource", "ResourceId", "Scope", "State",
]  # fmt: skip

_HISTORY_PAGE = 5000
_NAMES = 500
"""At most so many are looked for at a time (SQLite before 3.32 takes 999 parameters)."""


class Ledger:
    """The resources of both databases. Made by `Store.open`; used on the event loop's thread only."""

    def __init__(self, boot: Database, disk: Database, loaded: Iterable[Resource], clock: Callable[[], float]) -> None:
        self._databases = {Scope.BOOT: boot, Scope.DISK: disk}
        self._clock = clock
        self._mirror = Mirror(clock)
        for resource in loaded:
            self._mirror.put(resource)

    # ---- reads

    def get(self, kind: Kind, key: str) -> Resource | None:
        """The entry, or None: dropped, or never intended."""
        return self._mirror.get(ResourceId(kind, key))

    def all(self) -> list[Resource]:
        """Every entry, of a database in the order of their making."""
        return self._mirror.all()

    def owned(self, *, sandbox: str | None = None, container: str | None = None) -> list[Resource]:
        """What a sandbox (its containers included) or a container owns, in release order: dependents first, newest first.

        With both, the entries of that container in that sandbox; `container=""` asks for the sandbox's own ones.
        """
        if sandbox is None and container is None:
            raise TypeError("owned() needs a sandbox or a container")
        return self._mirror.owned(sandbox, container)

    def due(self, now: float) -> list[Resource]:
        """Entries whose release is decided and may be tried at `now`, in release order."""
        return in_release_order(resource for resource in self._mirror.all() if resource.due(now))

    def in_release_order(self, resources: Iterable[Resource]) -> list[Resource]:
        """The present state of those of `resources` that are still there: dependents first, newest first within a kind."""
        return self._mirror.sorted_for_release(resources)

    async def history(self, *, sandbox: str = "", container: str = "", key: str = "") -> list[Entry]:
        """The journal's entries of a sandbox, a container or a key (any of those given matches), oldest first.

        Raises:
            Unavailable: the journal can't be read.
        """
        found: list[Entry] = []
        for database in self._databases.values():
            position = 0
            while True:
                position, entries = await database.read(_history_page(position, (sandbox, container, key)))
                found += entries
                if not position:
                    break
        return sorted(found, key=lambda entry: entry.at)

    async def remembers(self, names: Collection[str]) -> set[str]:
        """Which of `names` the journal has as a sandbox, a container or a key: what it can tell of the last days.

        Raises:
            Unavailable: the journal can't be read.
        """
        found: set[str] = set()
        wanted = sorted(names)
        for start in range(0, len(wanted), _NAMES):
            batch = wanted[start : start + _NAMES]
            for database in self._databases.values():
                position = 0
                while True:
                    position, these = await database.read(functools.partial(_known, position, batch))
                    found |= these
                    if not position:
                        break
        return found

    # ---- acquiring

    async def intend(self, *intents: Intent) -> None:
        """Write down what is about to be acquired: all of it in one commit (per database), or nothing.

        When this raises, or is cancelled, nothing is kept.

        Raises:
            AlreadyExists: an entry with this kind and key is there.
            Unavailable: the ledger can't be written.
        """
        await failpoints.hit("store.intend.commit")
        now = self._clock()
        resources = [Resource.intended(intent, now) for intent in intents]
        ids: set[ResourceId] = set()
        for resource in resources:
            known = self._mirror.get(resource.id)
            if known is not None or resource.id in ids:
                owner = known or resource
                raise AlreadyExists(f"{resource.id} is {owner.state} in the ledger already, for {owner.owner}")
            ids.add(resource.id)
        writes = [
            (self._databases[scope], mine, rows.insert(mine, now))
            for scope in Scope
            if (mine := [resource for resource in resources if KINDS[resource.kind].scope is scope])
        ]
        for resource in resources:
            self._mirror.put(resource)
        committed = [database.write(function, keys=tuple(resource.id for resource in mine)) for database, mine, function in writes]
        try:
            outcomes = await asyncio.gather(*committed, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        except BaseException:
            for resource in resources:
                if self._mirror.get(resource.id) is resource:  # or a release that runs beside us has it
                    self._forget(resource, now)
            raise

    async def hold(self, kind: Kind, key: str, data: Mapping[str, JSON] | None = None) -> None:
        """Say that the resource exists; merge `data` into what is known of it.

        Raises:
            NotFound: it was never intended, or has been dropped.
            Unavailable: the ledger can't be written. In memory it is held, with `data`, so that it can be released.
        """
        await failpoints.hit("store.hold.commit")
        resource = self._find(kind, key).held(data or {})
        if not await self._change(resource, "held"):
            problem = self._databases[KINDS[kind].scope].problem
            raise Unavailable(f"{resource.id} exists, but that could not be written down: {problem}")

    # ---- releasing

    def releasing(self, resources: Iterable[Resource]) -> None:
        """Mark releases as decided, so that `due` tells them after a crash. Entries that are gone stay so. Never waits."""
        for resource in resources:
            current = self._mirror.get(resource.id)
            if current is not None and current.state is not State.RELEASING:
                self._change(current.releasing(), "releasing")

    async def failed(self, kind: Kind, key: str, error: str, next_attempt: float) -> None:
        """Record a failed release, to be tried again at `next_attempt` (Unix seconds). Never fails; an entry that is gone stays so."""
        if (written := self.failed_nowait(kind, key, error, next_attempt)) is not None:
            await written

    def failed_nowait(self, kind: Kind, key: str, error: str, next_attempt: float) -> asyncio.Future[bool] | None:
        """`failed` without waiting for the disk."""
        current = self._mirror.get(ResourceId(kind, key))
        return None if current is None else self._change(current.failed(error, self._clock(), next_attempt), "failed")

    async def drop(self, kind: Kind, key: str) -> None:
        """The resource is gone from the node. Idempotent; never fails: an unwritable drop stays pending, out of sight of reads."""
        if (written := self.drop_nowait(kind, key)) is not None:
            await written

    def drop_nowait(self, kind: Kind, key: str) -> asyncio.Future[bool] | None:
        """`drop` without waiting for the disk, which can hang: a crash before it is written repeats a release, no more."""
        current = self._mirror.get(ResourceId(kind, key))
        return None if current is None else self._forget(current, self._clock())

    async def flush(self) -> int:
        """Try pending writes again. Returns how many are still pending."""
        return sum([await database.flush() for database in self._databases.values()])

    @property
    def unwritten(self) -> int:
        """Entries of which the databases know an older state than memory does."""
        return sum(database.unwritten for database in self._databases.values())

    # ----

    def _find(self, kind: Kind, key: str) -> Resource:
        resource = self._mirror.get(ResourceId(kind, key))
        if resource is None:
            raise NotFound(f"{kind} {key} is not in the ledger")
        return resource

    def _change(self, resource: Resource, transition: str) -> asyncio.Future[bool]:
        function = rows.update(resource, transition, self._clock())
        self._mirror.put(resource)
        return self._databases[KINDS[resource.kind].scope].insist(function, key=resource.id)

    def _forget(self, resource: Resource, now: float) -> asyncio.Future[bool]:
        self._mirror.remove(resource.id)
        return self._databases[KINDS[resource.kind].scope].insist(rows.delete(resource, now), key=resource.id)


def _known(position: int, names: Sequence[str], connection: sqlite3.Connection) -> tuple[int, set[str]]:
    return journal.known(connection, position, names, _HISTORY_PAGE)


def _history_page(position: int, owner: tuple[str, str, str]) -> Callable[[sqlite3.Connection], tuple[int, list[Entry]]]:
    return lambda connection: journal.page(connection, position, owner, _HISTORY_PAGE)
