"""Makes a schedule that fails as short as it can be: leaves out runs of steps, long ones first, as long as it still fails (ddmin)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.unit.simulation.play import Outcome, play
from tests.unit.simulation.schedule import Schedule

_NAMES = re.compile(r"[0-9a-f]{8,}[-0-9a-f]*|\d+")
_ATTEMPTS = 400


def kind_of(outcome: Outcome) -> str:
    """What is wrong, without the names and numbers in it: by this a shorter schedule fails in the same way."""
    return _NAMES.sub("#", outcome.problems[0]) if outcome.problems else ""


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """The shortest that was found; `schedule` itself fails."""
    attempts, size = 0, max(1, len(schedule) // 2)
    while attempts < _ATTEMPTS:
        start, shorter = 0, False
        while start < len(schedule) and attempts < _ATTEMPTS:
            candidate = schedule[:start] + schedule[start + size :]
            attempts += 1
            if fails(candidate):
                schedule, shorter = candidate, True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = max(1, size // 2) if not shorter or size > 1 else 1
    return schedule


def minimal(seed: int, schedule: Schedule, directory: Path) -> tuple[Schedule, Outcome]:
    """The shortest schedule that fails as this one, and what comes of it."""
    kind = kind_of(play(seed, schedule, directory))
    found = shrink(schedule, lambda candidate: kind_of(play(seed, candidate, directory)) == kind)
    return found, play(seed, found, directory, verbose=True)


def report(seed: int, schedule: Schedule, outcome: Outcome) -> str:
    """For people, and to be put into `regressions`."""
    steps = "".join(f"            {op!r},\n" for op in schedule)
    problems = "\n".join(f"    {problem}" for problem in outcome.problems)
    trace = "\n".join(outcome.trace)
    return f"{problems}\nat {outcome.at}, by this schedule:\n    Case(\n        {seed},\n        [\n{steps}        ],\n    ),\n{trace}\n"
