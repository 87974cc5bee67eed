"""The ledger's rows in memory: all reads are answered from here, and the ledger's metrics are kept here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from agent import metrics
from agent.store.kinds import Kind
from agent.store.resource import Resource, ResourceId, State, release_position


class Mirror:
    """Resources by id, by sandbox and by container, in the order of their making."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._resources: dict[ResourceId, Resource] = {}
        self._by_sandbox: dict[str, dict[ResourceId, Resource]] = {}
        self._by_container: dict[str, dict[ResourceId, Resource]] = {}
        self._failing_since: dict[ResourceId, float] = {}
        self._gauges = {(kind, state): metrics.ledger_entries.labels(kind.value, state.value) for kind in Kind for state in State}
        for gauge in self._gauges.values():
            gauge.set(0)
        # Computed when they are read, by whatever thread serves the metrics: list() of a dict's items is atomic.
        for kind in Kind:
            metrics.oldest_pending_release.labels(kind.value).set_function(partial(self._oldest_pending, kind, clock))
            metrics.pending_releases.labels(kind.value).set_function(partial(self._pending, kind))

    def _failing(self, kind: Kind) -> list[float]:
        return [since for name, since in list(self._failing_since.items()) if name.kind is kind]

    def _pending(self, kind: Kind) -> float:
        return len(self._failing(kind))

    def _oldest_pending(self, kind: Kind, clock: Callable[[], float]) -> float:
        now = clock()
        return max(0.0, now - min(self._failing(kind), default=now))

    def put(self, resource: Resource) -> None:
        """Add, or replace in its place."""
        old = self._resources.get(resource.id)
        if old is not None:
            self._gauges[old.kind, old.state].dec()
        self._gauges[resource.kind, resource.state].inc()
        for index in self._indexes(resource):
            index[resource.id] = resource
        if resource.failed_since is not None:
            self._failing_since[resource.id] = resource.failed_since

    def remove(self, name: ResourceId) -> None:
        resource = self._resources[name]
        self._gauges[resource.kind, resource.state].dec()
        for index in self._indexes(resource):
            del index[name]
        if not self._by_sandbox[resource.sandbox]:
            del self._by_sandbox[resource.sandbox]
        if not self._by_container[resource.container]:
            del self._by_container[resource.container]
        self._failing_since.pop(name, None)

    def _indexes(self, resource: Resource) -> tuple[dict[ResourceId, Resource], ...]:
        return (
            self._resources,
            self._by_sandbox.setdefault(resource.sandbox, {}),
            self._by_container.setdefault(resource.container, {}),
        )

    def get(self, name: ResourceId) -> Resource | None:
        return self._resources.get(name)

    def all(self) -> list[Resource]:
        return list(self._resources.values())

    def owned(self, sandbox: str | None, container: str | None) -> list[Resource]:
        """In release order. None means: whatever it is."""
        if container is not None:
            found: Iterable[Resource] = self._by_container.get(container, {}).values()
            if sandbox is not None:
                found = (resource for resource in found if resource.sandbox == sandbox)
        else:
            found = self._by_sandbox.get(sandbox or "", {}).values()
        return in_release_order(found)

    def sorted_for_release(self, resources: Iterable[Resource]) -> list[Resource]:
        """Those of `resources` that are still there, in release order, however they come."""
        wanted = {resource.id for resource in resources}
        return in_release_order(resource for resource in self._resources.values() if resource.id in wanted)


def in_release_order(resources: Iterable[Resource]) -> list[Resource]:
    """Users before what they use, and the newest first within a kind; `resources` come in the order of their making."""
    newest_first = list(resources)[::-1]
    return sorted(newest_first, key=release_position)
