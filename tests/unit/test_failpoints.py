"""The language of failpoints and of shortened budgets."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import errdefs, failpoints, timeouts


@pytest.fixture(autouse=True)
def failpoints_off() -> Iterator[None]:
    yield
    failpoints.configure("")


async def test_only_the_named_one_acts_and_only_the_nth_time() -> None:
    failpoints.configure("a.b=2*error(full)")
    for name in ("a.b", "a.c"):
        await failpoints.hit(name)
    with pytest.raises(errdefs.Internal, match=r"failpoint a\.b: full"):
        await failpoints.hit("a.b")
    await failpoints.hit("a.b")
    assert failpoints.passed() == ["a.b", "a.c", "a.b", "a.b"]


async def test_a_star_is_all_that_are_not_named() -> None:
    failpoints.configure("*=2*error;a.b=delay(0)")
    for name in ("a.b", "a.b", "a.c"):
        await failpoints.hit(name)
    with pytest.raises(errdefs.Internal, match=r"failpoint a\.d"):
        await failpoints.hit("a.d")


async def test_off_nothing_is_noted() -> None:
    failpoints.configure("a.b=delay(0)")
    await failpoints.hit("a.b")
    failpoints.configure("")
    await failpoints.hit("a.b")
    assert failpoints.passed() == []


@pytest.mark.parametrize("text", ["a.b", "a.b=explode", "=error", "a.b=error(x"])
def test_what_is_not_in_the_language(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match="is not NAME="):
        failpoints.configure(text)


def test_budgets_can_be_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORLOP_TIMEOUTS", "CNI=1.5;SHIM_START=2")
    shortened = runpy.run_path(str(Path(timeouts.__file__)))
    assert (shortened["CNI"], shortened["SHIM_START"]) == (1.5, 2)
    monkeypatch.setenv("ORLOP_TIMEOUTS", "CNl=1")
    with pytest.raises(ValueError, match="'CNl=1' is no budget"):
        runpy.run_path(str(Path(timeouts.__file__)))
