"""The sandboxes and containers that exist, in memory first: List and Status read here and never wait (invariant 14).

A change is computed as a new record, stored, and swapped in; the wire bytes for lists are rendered at the same moment.
Records live in the boot-scoped database: after a reboot there are no pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from agent import log
from agent.errdefs import AlreadyExists, DataLoss, NotFound, OrlopError
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.sandbox import SandboxRecord
from agent.pods.wire import chunks, element
from agent.stats import Meter

_log = log.get("pods")


class Record(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    def encode(self) -> bytes: ...
    def to_item(self) -> object: ...


class RecordStore(Protocol):
    """What `agent.store.records.Records` offers."""

    async def put(self, key: str, data: bytes) -> None: ...
    async def delete(self, key: str) -> None: ...
    async def load(self) -> dict[str, bytes]: ...


class Sandbox:
    """A live sandbox: its record, and what only this incarnation of the daemon knows."""

    def __init__(self, record: SandboxRecord) -> None:
        self.record = record
        self.item = b""
        self.meter = Meter()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def entered(self) -> None:
        """A Create or Start begins in this sandbox; StopPodSandbox waits for it."""
        self.in_flight += 1
        self.idle.clear()

    def left(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()


class Container:
    """A live container. `removing` lets no start begin; `exited` is set when its exit is recorded; `stopper` is the one task
    that stops it; `pod_oom_kills` is what its pod had counted when it started (`oom`), None if that isn't known."""

    def __init__(self, record: ContainerRecord) -> None:
        self.record = record
        self.item = b""
        self.meter = Meter()
        self.removing = False
        self.exited = asyncio.Event()
        self.stopper: asyncio.Task[None] | None = None
        self.stop_deadline = float("inf")
        self.stop_sooner = asyncio.Event()
        self.pod_oom_kills: int | None = None
        if record.state is ContainerState.EXITED:
            self.exited.set()


R = TypeVar("R", bound=Record)
L = TypeVar("L", Sandbox, Container)
Changed = Callable[[Any, Any], None]
"""Called with the record before and after a change; None for what isn't there yet, or any more."""


def _ignore(before: object, after: object) -> None:
    pass


class Table(Generic[L]):
    """Live objects by id, with unique names. `kind` is the word for messages: sandbox or container."""

    def __init__(self, kind: str, records: RecordStore) -> None:
        self._kind = kind
        self._records = records
        self.changed: Changed = _ignore
        """Is told of each change of a record, in the moment in which lists begin to show it."""
        self._objects: dict[str, L] = {}
        self._names: dict[str, str] = {}

    def reserve(self, name: str, id: str) -> None:  # noqa: A002 - the field's own word
        """Take `name` for an object that is being made.

        Raises:
            AlreadyExists: somebody has it; the message says who.
        """
        if (owner := self._names.get(name)) is not None:
            raise AlreadyExists(f"{self._kind} name {name!r} is taken by {self._kind} {owner}; remove that one first")
        self._names[name] = id

    def unreserve(self, name: str) -> None:
        self._names.pop(name, None)

    async def add(self, live: L) -> None:
        """Store and publish a new object whose name is reserved."""
        await self._records.put(live.record.id, live.record.encode())
        self._publish(live)
        self.changed(None, live.record)

    async def update(self, live: L, record: SandboxRecord | ContainerRecord) -> None:
        """Swap in a changed record.

        The memory is the truth while the daemon runs: a record that can't be stored (disk full) is swapped in all the
        same, since the event it tells of has happened, and is stored with its next change.
        """
        if record.id not in self._objects:
            return  # removed meanwhile: an event that comes late must not bring it back
        before = live.record
        live.record = record  # type: ignore[assignment] # L pairs each live class with its record class
        self._render(live)
        self.changed(before, record)
        try:
            await self._records.put(record.id, record.encode())
        except OrlopError as error:
            _log.error("record not stored", kind=self._kind, id=record.id, error=str(error))

    async def remove(self, live: L) -> None:
        known = self._objects.pop(live.record.id, None)
        self._names.pop(live.record.name, None)
        if known is not None:
            self.changed(live.record, None)
        await self._records.delete(live.record.id)

    async def load(self, live: type[L], decode: type[SandboxRecord] | type[ContainerRecord]) -> None:
        """Read all stored records; one that is torn is left out and reported, never fatal."""
        for key, data in (await self._records.load()).items():
            try:
                record = decode.decode(data)
            except DataLoss as error:
                _log.error("record set aside", kind=self._kind, id=key, error=str(error))
                continue
            self._names[record.name] = record.id
            self._publish(live(record))  # type: ignore[arg-type]

    def find(self, id: str) -> L | None:  # noqa: A002
        """By full id, or by a prefix that only one object has (crictl's short ids)."""
        if (live := self._objects.get(id)) is not None or not id:
            return live
        matches = [other for key, other in self._objects.items() if key.startswith(id)]
        return matches[0] if len(matches) == 1 else None

    def get(self, id: str) -> L:  # noqa: A002
        """Like `find`.

        Raises:
            NotFound: no such object, or an ambiguous prefix.
        """
        live = self.find(id)
        if live is None:
            raise NotFound(f"{self._kind} {id!r} doesn't exist")
        return live

    def chunks(self, selected: Iterable[L]) -> Iterator[bytes]:
        """The list response made of `selected`, as several messages that together say the same."""
        return chunks(live.item for live in selected)

    def items(self, selected: Iterable[L]) -> bytes:
        """The list response made of `selected`."""
        return b"".join(live.item for live in selected)

    def __iter__(self) -> Iterator[L]:
        return iter(list(self._objects.values()))

    def __contains__(self, wanted: object) -> bool:
        return wanted in self._objects

    def __len__(self) -> int:
        return len(self._objects)

    def _publish(self, live: L) -> None:
        self._render(live)
        self._objects[live.record.id] = live

    def _render(self, live: L) -> None:
        live.item = element(1, live.record.to_item().SerializeToString())


class Registry:
    """Both tables, and what goes across them."""

    def __init__(self, sandboxes: RecordStore, containers: RecordStore) -> None:
        self.sandboxes: Table[Sandbox] = Table("sandbox", sandboxes)
        self.containers: Table[Container] = Table("container", containers)

    async def load(self) -> None:
        await self.sandboxes.load(Sandbox, SandboxRecord)
        await self.containers.load(Container, ContainerRecord)

    def containers_of(self, sandbox_id: str) -> list[Container]:
        """Newest first: the order in which they are taken down."""
        found = [live for live in self.containers if live.record.sandbox_id == sandbox_id]
        return sorted(found, key=lambda live: live.record.created_at, reverse=True)
