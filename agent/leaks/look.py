"""What a detector gets, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.leaks.finding import Finding
from agent.leaks.node import Node
from agent.leaks.owned import Owned
from agent.leaks.places import Places


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


ReadLeases = Callable[[Path], Iterable[Lease]]
"""`agent.network.leases.read_leases`. Blocks; raises OSError."""


@dataclass(frozen=True)
class Look:
    """The ledger at one moment and, after that, the node."""

    node: Node
    owned: Owned
    read_leases: ReadLeases

    @property
    def places(self) -> Places:
        return self.node.places


Detector = Callable[[Look], Iterator[Finding]]
"""Blocks, and only reads. An OSError that it raises becomes one finding of state "unknown"."""
