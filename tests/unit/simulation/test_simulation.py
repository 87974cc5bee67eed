"""Random schedules on simulated nodes: what must hold does, after each step, and at the end the node is empty.

The seeds rotate with the day, so that each day's runs try others; a schedule that fails is printed, made short, ready for `regressions`.
More of them: `make simulate SEEDS=FROM:COUNT`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.simulation.conftest import FIRST, PER_TEST, TESTS
from tests.unit.simulation.play import play
from tests.unit.simulation.regressions import CASES
from tests.unit.simulation.schedule import generate
from tests.unit.simulation.shrink import minimal, report


@pytest.mark.parametrize("first", [FIRST + number * PER_TEST for number in range(TESTS)])
def test_schedules(first: int, directory: Path) -> None:
    for seed in range(first, first + PER_TEST):
        schedule = generate(seed)
        if play(seed, schedule, directory).problems:
            pytest.fail(f"seed {seed}\n{report(seed, *minimal(seed, schedule, directory))}")


@pytest.mark.parametrize("name", CASES)
def test_what_once_failed(name: str, directory: Path) -> None:
    seed, schedule = CASES[name]
    outcome = play(seed, schedule, directory)
    assert outcome.problems == []


def test_the_same_seed_plays_the_same(directory: Path) -> None:
    """Else a failure could not be looked into."""
    first, second = (play(7, generate(7), directory, verbose=True).trace for _ in range(2))
    assert first == second
    assert len(first) > 100
