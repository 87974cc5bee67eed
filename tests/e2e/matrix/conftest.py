"""Each run of the matrix ends with its tables, and writes them to the file that ORLOP_MATRIX_TABLE names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.matrix import slices
from tests.e2e.matrix.table import Matrix
from tests.e2e.toolbox import Pair

_MATRIX = Matrix()


@pytest.fixture(scope="module", params=slices.PAIRS_OF_SLICE, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """One for each generation of shims; in a slice only one."""
    chosen: Pair = request.param
    return chosen


@pytest.fixture
def matrix() -> Iterator[Matrix]:
    """The run's, to be filled."""
    yield _MATRIX
    if name := os.environ.get("ORLOP_MATRIX_TABLE"):  # already now: a run may be cut short
        Path(name).write_text("\n".join(_lines()) + "\n")


def _lines() -> list[str]:
    return [f"slice {slices.CHOSEN} of the crash matrix (ORLOP_MATRIX_SLICE)", "", *_MATRIX.text()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _MATRIX.cases:
        terminalreporter.section("crash matrix")
        for line in _lines():
            terminalreporter.write_line(line)
