"""Tests that shorten budgets shorten those they mean."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from agent import timeouts

BUDGETS = {name: value for name, value in vars(timeouts).items() if name.isupper()}


def test_each_can_be_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORLOP_TIMEOUTS", ";".join(f"{name}={value / 2}" for name, value in BUDGETS.items()))
    shortened = runpy.run_path(str(Path(timeouts.__file__)))
    assert {name: shortened[name] for name in BUDGETS} == {name: value / 2 for name, value in BUDGETS.items()}


@pytest.mark.parametrize("text", ["CNl=1", "CNI", "os=1", "CNI=soon"])
def test_what_is_no_budget_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ORLOP_TIMEOUTS", text)
    with pytest.raises(ValueError, match=r"is no budget|could not convert"):
        runpy.run_path(str(Path(timeouts.__file__)))
