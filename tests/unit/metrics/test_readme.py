"""README.md beside the metrics tells of every one of them, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from agent import metrics

README = (Path(metrics.__file__).parent / "README.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")]
DEFINED = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def described() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name."""
    return {row[0].strip("`"): (row[1], tuple(filter(None, re.split(r",\s*", row[2])))) for row in ROWS}


def test_type_and_labels_of_each_are_those_that_it_has() -> None:
    assert described() == {metric._name: (metric._type, tuple(metric._labelnames)) for metric in DEFINED}


def test_none_is_described_twice() -> None:
    assert len(ROWS) == len(described())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_each_says_what_it_means_and_what_to_do(row: list[str]) -> None:
    assert len(row) == 5
    assert all(len(cell) > 5 for cell in row[3:])


def test_all_of_them_are_served() -> None:
    assert {metric._name for metric in DEFINED} == {family.name for family in metrics.registry.collect()}


def test_every_metric_that_is_named_exists() -> None:
    """Also in the alerts, where a histogram has its suffixes."""
    named = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"\borlop_[a-z_]+", README)}
    assert named == {metric._name for metric in DEFINED}


def test_names_follow_prometheus_conventions() -> None:
    for metric in DEFINED:
        assert re.fullmatch(r"orlop_[a-z]+(_[a-z]+)*", metric._name)
        if metric._type == "histogram":
            assert metric._name.endswith("_seconds")
