"""Samples by measurement and socket, and why there are none where there are none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent.bench.measurements import Measurement


@dataclass
class Samples:
    """What one socket gave for one measurement."""

    values: list[float] = field(default_factory=list)
    reason: str = ""
    """Why there are no values, or no more of them; a sentence for people."""


@dataclass(frozen=True)
class Summary:
    """Samples in few numbers, in the measurement's unit. `mad` is the median of the distances from the median."""

    count: int
    median: float
    p95: float
    mad: float
    least: float
    most: float


def summary(values: Sequence[float]) -> Summary | None:
    """None for no samples. The 95th percentile is a sample (nearest rank), not a value between two."""
    if not values:
        return None
    middle = statistics.median(values)
    ascending = sorted(values)
    p95 = ascending[math.ceil(0.95 * len(ascending)) - 1]
    mad = statistics.median(abs(value - middle) for value in ascending)
    return Summary(len(ascending), middle, p95, mad, ascending[0], ascending[-1])


def ratio(one: Summary | None, reference: Summary | None) -> float | None:
    """Of the medians; None if either is missing, or the reference is nothing."""
    if one is None or reference is None or not reference.median:
        return None
    return one.median / reference.median


class Results:
    """Everything that was measured. Sockets are known by their names; the first is what the others are compared with."""

    def __init__(self, measurements: Iterable[Measurement], names: Sequence[str]) -> None:
        self.names = list(names)
        self.measurements = list(measurements)
        self._samples = {(row.key, name): Samples() for row in self.measurements for name in names}

    def of(self, key: str, name: str) -> Samples:
        return self._samples[key, name]

    def add(self, key: str, name: str, value: float) -> None:
        self.of(key, name).values.append(value)

    def absent(self, key: str, name: str, reason: str) -> None:
        """This measurement has no further samples; the first reason stays."""
        samples = self.of(key, name)
        samples.reason = samples.reason or reason

    def failed(self, family: str, name: str, reason: str) -> None:
        """`absent` for all measurements of a family."""
        for row in self.measurements:
            if row.family == family:
                self.absent(row.key, name, reason)

    def extend(self, rows: Iterable[Measurement]) -> None:
        """Further measurements, that others took; those that are there already stay."""
        known = {row.key for row in self.measurements}
        for row in rows:
            if row.key not in known:
                known.add(row.key)
                self.measurements.append(row)
                self._samples |= {(row.key, name): Samples() for name in self.names}
