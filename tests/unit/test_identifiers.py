"""Which ids are let in: they become paths, cgroup names and arguments."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import identifiers
from agent.errdefs import InvalidArgument


@pytest.mark.parametrize("value", ["a", "0", "a-b", "a.b_c-d", "A1", "x" * 76, "ab" * 32])
def test_an_id(value: str) -> None:
    assert identifiers.validate(value, "id") == value


@pytest.mark.parametrize(
    "value",
    [
        "", ".", "..", "-", "a/b", "/a", "../a", "a..b", "a--b", "-a", "a-", "a b", "a\n", "\na", "a\0", "ä", "²", "a:b", "$(id)", "--help",
        "x" * 77, "a\u2028", "%2e%2e",
    ],
)  # fmt: skip
def test_no_id(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^sandbox_id "):
        identifiers.validate(value, "sandbox_id")


def test_what_is_much_too_long_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidArgument) as failure:
        identifiers.validate("x" * 100_000, "id")
    assert len(str(failure.value)) < 300


@given(st.text(max_size=80))
def test_what_is_let_in_is_one_path_component_of_plain_characters(value: str) -> None:
    try:
        identifiers.validate(value, "id")
    except InvalidArgument:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value)
    assert ".." not in value


def test_new_ids_are_ids_and_differ() -> None:
    ids = {identifiers.validate(identifiers.new_id(), "id") for _ in range(100)}
    assert len(ids) == 100
    assert {len(value) for value in ids} == {64}
