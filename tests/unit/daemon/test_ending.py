"""The daemon's end takes a bounded time, whatever hangs."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from agent import timeouts
from agent.daemon import ending
from agent.daemon.ending import Ending

HANGS = """
import asyncio, time
from agent.aio import in_thread
from agent.daemon.ending import Ending

async def stop(left):
    pass

async def main():
    hanging = asyncio.create_task(in_thread(time.sleep, 3600))
    await asyncio.sleep(0.05)
    await Ending().give(stop)
    print("stopped", flush=True)

asyncio.run(main())
"""


async def test_all_parts_together_get_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    got: list[float] = []

    async def stop(left: float) -> None:
        nonlocal now
        got.append(left)
        now += min(left, 4.0)

    monkeypatch.setattr(timeouts, "DAEMON_STOP", 10.0)
    monkeypatch.setattr(ending, "_end_in_any_case", lambda: None)
    monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=lambda: now))
    end = Ending()
    now += 5000  # the daemon runs for a while
    await end.give(stop, 3.0)
    for _ in range(4):
        await end.give(stop)
    assert got == [3.0, 7.0, 3.0, 0.0, 0.0]


def test_a_thread_that_hangs_does_not_hold_up_the_end_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env={"ORLOP_TIMEOUTS": "DAEMON_KILL=0.3"}, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1, done.stderr
    assert "stopped" in done.stdout
    assert "doesn't end" in done.stdout
