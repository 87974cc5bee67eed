"""Which part of the matrix is run: by ORLOP_MATRIX_SLICE "all", or a number; by default the number of the day, so that CI gets around."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from tests.e2e.toolbox import Pair

T = TypeVar("T")

CHOSEN = os.environ.get("ORLOP_MATRIX_SLICE", "") or str(datetime.now(UTC).toordinal())
WHOLE = CHOSEN == "all"
NUMBER = 0 if WHOLE else int(CHOSEN)

PAIRS = [Pair("1.6", "runc"), Pair("1.7", "runc"), Pair("2.1", "crun")]
"""One of each generation of shims, with both engines."""
PAIRS_OF_SLICE = PAIRS if WHOLE else [PAIRS[NUMBER % len(PAIRS)]]


def part(cases: Sequence[T], of: int) -> list[T]:
    """All of `cases`, or those of one slice out of `of`, spread evenly."""
    return list(cases if WHOLE else cases[NUMBER % of :: of])
