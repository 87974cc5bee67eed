"""The ledger, as detectors ask it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agent.store.ledger import Kind, Resource, ResourceId


@dataclass(frozen=True)
class LedgerRead:
    """One reading of the ledger."""

    resources: Sequence[Resource]
    served: bool
    """By a running daemon, whose process is then not taken for another agent's; else it comes from the files of one that is down."""


Remembered = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Which of these sandboxes, containers and keys the ledger once had, as its journal tells. Raises OrlopError."""


async def nothing_remembered(_: Collection[str]) -> Collection[str]:
    """Where there is no journal to ask."""
    return ()


class Owned:
    """The entries of the ledger at one moment."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.all = list(resources)
        self._by_id = {resource.id: resource for resource in self.all}

    def get(self, kind: Kind, key: str) -> Resource | None:
        return self._by_id.get(ResourceId(kind, key))

    def has(self, kind: Kind, key: str) -> bool:
        return ResourceId(kind, key) in self._by_id

    def keys(self, *kinds: Kind) -> set[str]:
        return {key for kind, key in self._by_id if kind in kinds}

    @cached_property
    def bundles(self) -> set[str]:
        """Ids that may have a bundle: a shim's own one, or a container's. A shim that serves one container alone has its id."""
        return self.keys(Kind.SHIM, Kind.TASK)

    def shim_process(self, shim: str) -> tuple[int, int] | None:
        """The pid and start time of the shim that was started as `shim`; None: no entry says."""
        records: list[Mapping[str, Any]] = []
        if (resource := self.get(Kind.SHIM, shim)) is not None:
            records.append(resource.data)
        if (resource := self.get(Kind.TASK, shim)) is not None:
            records.append(resource.data.get("own_shim") or {})
        return next(((record["pid"], record.get("start_time", 0)) for record in records if record.get("pid")), None)

    @cached_property
    def container_cgroups(self) -> dict[str, str]:
        """The cgroup of each container that has one: path to id."""
        return {path: resource.key for resource in self.all if resource.kind is Kind.TASK and (path := resource.data.get("cgroup"))}

    @cached_property
    def cgroup_parents(self) -> set[str]:
        """The cgroups of pods that are known: those that the agent made, and those that its containers are in."""
        return self.keys(Kind.CGROUP) | {path.rpartition("/")[0] for path in self.container_cgroups} - {""}
