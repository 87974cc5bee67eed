"""What a process that plays nothing but schedules does without: metrics and the ledger's journal, which no invariant is about."""

from __future__ import annotations

import gc
import pathlib
from functools import lru_cache
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from agent import metrics
from agent.store import journal


class _Uncounted:
    """A metric that counts nothing."""

    def labels(self, *_: Any, **labels: Any) -> _Uncounted:
        return self

    def nothing(self, *_: Any, **options: Any) -> None:
        pass

    inc = dec = set = observe = set_function = nothing


def leave_out() -> None:
    """For the rest of this process."""
    for name, metric in vars(metrics).copy().items():
        if isinstance(metric, MetricWrapperBase):
            setattr(metrics, name, _Uncounted())
    journal.append = lambda connection, entry: None
    _remember_paths()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)  # a world is full of cycles, and ends soon


def _remember_paths() -> None:
    """Paths are taken apart again and again: a twentieth of the time."""
    flavour: Any = pathlib.PurePosixPath._flavour  # type: ignore[attr-defined]
    remembered = lru_cache(4096)(flavour.parse_parts)

    def parse_parts(parts: list[str]) -> tuple[str, str, list[str]]:
        drive, root, names = remembered(tuple(parts))
        return drive, root, names.copy()

    flavour.parse_parts = parse_parts
