"""The table of metrics: static, complete, and as Prometheus needs it."""

from __future__ import annotations

import re

import pytest

from agent.stats.descriptors import BASE, TABLE, Descriptor


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_names_labels_and_help(entry: Descriptor) -> None:
    assert re.fullmatch("container_[a-z_]+[a-z]", entry.name)
    assert entry.help.endswith(".")
    labels = (*BASE, *entry.labels)
    assert len(set(labels)) == len(labels)
    counts = entry.name.endswith("_total") and "inodes" not in entry.name
    assert entry.kind == ("counter" if counts or entry.name == "container_memory_failcnt" else "gauge")


def test_no_name_twice() -> None:
    assert len({entry.name for entry in TABLE}) == len(TABLE) > 50
