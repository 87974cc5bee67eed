"""Tables and JSON."""

from __future__ import annotations

import json
import time

import pytest

from agent.cli import output


def test_json_has_everything_and_stays_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "ä", "tags": ["a", "b"], "size": 7, "hidden": None}]
    output.show(rows, ("id",), "json")
    assert json.loads(capsys.readouterr().out) == rows
    output.show([], ("id",), "json")
    assert json.loads(capsys.readouterr().out) == []


def test_a_table_has_the_columns_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    output.show([{"pod_id": "1", "tags": ("a", "b"), "other": "x"}, {"tags": 7}], ("tags", "pod_id"), "table")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["TAGS", "POD", "ID"], ["a,", "b", "1"], ["7"]]


def test_in_a_pipe_nothing_is_cut_or_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"what": "w" * 500, "id": "i" * 500, "tags": ["t" * 200] * 5}
    output.show([row], ("id", "what", "tags"), "table")
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=2) == ["i" * 500, "w" * 500, ", ".join(["t" * 200] * 5)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("[/x]", "[/x]"),
        ("[red]x", "[red]x"),
        (":smile:", ":smile:"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\u202egnp", r"\u202egnp"),
        ("ä 漢", "ä 漢"),
    ],
)
def test_names_are_shown_as_they_are_and_do_nothing(capsys: pytest.CaptureFixture[str], value: str, shown: str) -> None:
    output.show([{"name": value}], ("name",), "table")
    assert capsys.readouterr().out.splitlines()[1].rstrip() == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400, "1d"), (-5, "0s")]
)
def test_ages(monkeypatch: pytest.MonkeyPatch, seconds: int, shown: str) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert output.age(10**18 - seconds * 10**9) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0.0B"), (1023, "1023.0B"), (1536, "1.5KiB"), (5 << 20, "5.0MiB"), (3 << 30, "3.0GiB"), (5 << 40, "5.0TiB")]
)
def test_sizes(count: int, shown: str) -> None:
    assert output.size(count) == shown
