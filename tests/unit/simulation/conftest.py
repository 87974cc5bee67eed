"""Where nodes are, and which seeds were played."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.simulation.world import remove, scratch

PER_TEST = 50
TESTS = int(os.environ.get("ORLOP_SIMULATE_TESTS", "20"))
FIRST = int(os.environ.get("ORLOP_SIMULATE_FROM", int(time.time()) // 86400 * 100_000))
"""Other seeds each day."""


@pytest.fixture
def directory() -> Iterator[Path]:
    yield scratch()
    remove(scratch())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"simulation: seeds {FIRST} to {FIRST + TESTS * PER_TEST - 1}")
