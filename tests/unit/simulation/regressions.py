"""Schedules that once failed, made short, with the mistake that they found."""

from __future__ import annotations

from typing import NamedTuple

from tests.unit.simulation.schedule import Schedule


class Case(NamedTuple):
    seed: int
    schedule: Schedule


CASES: dict[str, Case] = {}
