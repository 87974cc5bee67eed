"""What a detector gets, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.leaks.finding import Finding
from agent.leaks.foreign import Foreign
from agent.leaks.node import Node
from agent.leaks.owned import Owned
from agent.leaks.places import Places

GRACE = 300.0
"""Seconds before something that could be another runtime's is judged: a RunPodSandbox is given up by the kubelet after 240,
and the pod is in no list until it has succeeded."""


class Lease(Protocol):
    """What is needed of `agent.network.leases.Lease`."""

    @property
    def network(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def sandbox(self) -> str: ...
    @property
    def path(self) -> Path: ...


class CachedResult(Protocol):
    """What is needed of `agent.network.inventory.CachedResult`."""

    @property
    def network(self) -> str: ...
    @property
    def sandbox(self) -> str: ...
    @property
    def netns(self) -> str: ...
    @property
    def path(self) -> Path: ...


class Chain(Protocol):
    """What is needed of `agent.network.chains.Chain`."""

    @property
    def tool(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def sandbox(self) -> str: ...


class Network(Protocol):
    """`agent.network.Inventory`. Blocks; raises OSError, OrlopError."""

    def chains(self) -> Iterable[Chain]: ...
    def leases(self, directory: Path) -> Iterable[Lease]: ...
    def results(self, directory: Path) -> Iterable[CachedResult]: ...


@dataclass(frozen=True)
class Look:
    """The ledger at one moment, after that the node, and after that what the other runtimes on it say."""

    node: Node
    owned: Owned
    network: Network
    foreign: Foreign
    grace: float = GRACE

    @property
    def places(self) -> Places:
        return self.node.places

    @property
    def beside_others(self) -> bool:
        """Whether there is a sign of another runtime, so that what bears no name can be its own."""
        return bool(self.foreign.answers or self.foreign.unasked or self.foreign.running)

    def young(self, since: float | None) -> bool:
        """Whether something that is there since then may just be being made; also where that can't be told."""
        return since is None or self.node.taken - since < self.grace


Detector = Callable[[Look], Iterator[Finding]]
"""Blocks, and only reads. An OSError that it raises becomes one finding of state "unknown"."""
