"""Each run of the matrix ends with its tables, and writes them to the file that ORLOP_MATRIX_TABLE names."""

from __future__ import annotations

import os
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
def matrix() -> Matrix:
    """The run's, to be filled."""
    return _MATRIX


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _MATRIX.cases:
        return
    lines = [f"slice {slices.CHOSEN} of the crash matrix (ORLOP_MATRIX_SLICE)", "", *_MATRIX.text()]
    if name := os.environ.get("ORLOP_MATRIX_TABLE"):
        Path(name).write_text("\n".join(lines) + "\n")
    terminalreporter.section("crash matrix")
    for line in lines:
        terminalreporter.write_line(line)
