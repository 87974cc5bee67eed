"""A slice of the churn soak (`make soak`), with another seed and another pair of shim and engine each day.

`ORLOP_SOAK_SEED` plays one again. What it doesn't say is how much memory the daemon takes: for that its pods are too few.
"""

from __future__ import annotations

import faulthandler
import os
import time
from pathlib import Path

import pytest

from tests.e2e.toolbox import PAIRS
from tests.soak.soak import Soak

PODS = 60
SEED = int(os.environ.get("ORLOP_SOAK_SEED", time.time() // 86400))


@pytest.mark.e2e
@pytest.mark.field_fault("2", "3")
def test_nothing_stays_of_pods_whose_helpers_are_killed(tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulthandler.cancel_dump_traceback_later()  # pytest's: the life of 60 pods is longer than that of a test
    soak = Soak(tmp_path, PAIRS[SEED % len(PAIRS)], busybox, pods=PODS, parallel=8, seed=SEED)
    soak.run()
    with capsys.disabled():
        print(f"\n{soak.report()}")
    assert soak.problems() == []
