"""The table of field faults in tests/README.md names, for each row, all tests that carry its number, and no other; or why there is none."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = [
    *("0a", "0b", "0c"),
    *(str(number) for number in range(1, 32)),
    *(f"M{number}" for number in range(1, 8)),
    *(f"S{number}" for number in range(1, 5)),
]
"""Faults that were reported; M: those that were measured with other runtimes; S: those that are seen in their source."""


def marked() -> dict[str, set[str]]:
    """Row to the tests with its number, as `path::name`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for name, rows in _marks(path):
            for row in rows:
                found[row].add(f"{path.relative_to(TESTS)}::{name}")
    return found


def _marks(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.field_fault":
                    yield node.name, [ast.literal_eval(argument) for argument in mark.args]


def table() -> dict[str, str]:
    """Row to its cell of tests, from the section of tests/README.md."""
    section = (TESTS / "README.md").read_text().partition("\n## Field faults\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {cell[0].strip(): cell[-1] for cell in cells[2:]}


def test_all_rows_are_there_in_order() -> None:
    assert list(table()) == ROWS


def test_each_row_names_the_tests_that_carry_its_number() -> None:
    marks = marked()
    assert set(marks) <= set(ROWS)
    for row, cell in table().items():
        named = set()
        for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", cell):
            named |= {f"{path}::{name}" for name in re.findall(r"`(test_\w+)`", names)}
        assert named == marks[row], f"row {row}"
        assert named or "can't" in cell, f"row {row} has neither a test nor a reason"
