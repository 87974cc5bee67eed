"""What the matrix found, by kind, and the tables of it. Filled by the tests of this package, shown and written by its `conftest.py`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

KINDS = {
    "shim": r"process \d+ containerd-shim.*",
    "process": r"process .*",
    "netns": r"\S+ /run/netns/.*",
    "mount": r"mount .*",
    "network interface": r"link \S+ \(index .*",
    "nat chain": r"nat chain .*",
    "IP lease": r"\S+ /var/lib/cni/.*",
    "cgroup": r"cgroup .*",
    "FIFO": r"FIFO .*",
    "socket": r"socket .*",
    "bundle": r"\S+ \S+/io\.containerd\.runtime\.v2\.task/.*",
    "engine state": r"\S+ /run/\S+/runc/.*",
    "snapshot": r"\S+ \S+/snapshots/.*",
    "ingest blob": r"\S+ \S+/content/.*",
    "other file": r"(file|directory|link) /.*",
    "ledger entry": r"in the ledger: .*",
}
"""Kinds of the things that `Rig.left` tells of, as regular expressions; the first that matches counts."""


def kind_of(thing: str) -> str:
    """Raises StopIteration: a thing of no kind."""
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, thing, re.DOTALL))


def by_kind(things: Iterable[str]) -> Counter[str]:
    return Counter(map(kind_of, things))


@dataclass
class Case:
    """One harm that was done. `column` is a verb, `lane` a shim, `row` a point."""

    table: str
    row: str
    column: str
    lane: str
    at: Counter[str] = field(default_factory=Counter)
    """What was on the node, beside the bystander, right when the harm was done."""
    left: Counter[str] = field(default_factory=Counter)
    """What was there at the end."""
    detail: str = ""
    """Which of several points of the same place."""
    refused: bool = False
    """Whether the call failed, cleanly."""
    failure: str = ""
    """What went wrong beside the harm."""

    def __str__(self) -> str:
        return f"{self.table}: {self.row}, {self.column}, {self.lane}, {self.detail}"


@dataclass
class Matrix:
    """All cases of a run."""

    cases: list[Case] = field(default_factory=list)

    def text(self) -> Iterator[str]:
        """The tables, as Markdown."""
        tables: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            tables[case.table].append(case)
        for title, cases in tables.items():
            yield from (f"## {title}", "")
            yield from _by_place(cases)
            yield ""
        yield from ("## what was found, by kind", "")
        yield from _by_kind(tables)
        yield ""
        failed = [case for case in self.cases if case.failure]
        for title, cases in tables.items():
            left = sum(case.left.total() for case in cases)
            yield f"{title}: {len(cases)} cases, in {sum(case.refused for case in cases)} of them the call failed; {left} things left."
        yield f"{len(failed)} cases where something else went wrong."
        yield from (f"- {case}: {case.failure}" for case in failed)


def _by_place(cases: Sequence[Case]) -> Iterator[str]:
    lanes = list(dict.fromkeys(case.lane for case in cases))
    columns = list(dict.fromkeys(case.column for case in cases))
    places: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for case in cases:
        places[case.row, case.column, case.lane].append(case)
    yield f"In a cell: times it was done, and things left, with {' / '.join(lanes)}; ! where something else went wrong."
    yield ""
    yield from _row("", columns)
    yield from _row("---", ["---"] * len(columns))
    for row in sorted({case.row for case in cases}):
        yield from _row(row, [_place([places[row, column, lane] for lane in lanes]) for column in columns])


def _place(lanes: Sequence[Sequence[Case]]) -> str:
    return " / ".join(map(_cell, lanes)) if any(lanes) else "–"


def _cell(cases: Sequence[Case]) -> str:
    if not cases:
        return "–"
    bad = "!" if any(case.failure for case in cases) else ""
    return f"{len(cases)}:{sum(case.left.total() for case in cases)}{bad}"


def _by_kind(tables: dict[str, list[Case]]) -> Iterator[str]:
    yield from _row("", [f"{title}: {moment}" for title in tables for moment in ("then", "left")])
    yield from _row("---", ["---"] * 2 * len(tables))
    for kind in KINDS:
        counts = [sum(getattr(case, moment)[kind] for case in cases) for cases in tables.values() for moment in ("at", "left")]
        yield from _row(kind, list(map(str, counts)))


def _row(name: str, cells: Sequence[str]) -> Iterator[str]:
    yield f"| {name} | {' | '.join(cells)} |"
