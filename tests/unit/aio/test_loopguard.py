"""The guard as a whole, in a process of its own: audit hooks can't be taken back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.aio import loopguard

REPO = Path(__file__).resolve().parents[3]
CALLS = {
    "open": "open", "facts": "open", "listdir": "os.listdir", "scandir": "os.scandir", "mkdir": "os.mkdir", "rename": "os.rename",
    "rmdir": "os.rmdir", "unlink": "os.remove", "fsync": "os.fsync", "fdatasync": "os.fdatasync", "subprocess": "subprocess.Popen",
    "sqlite": "sqlite3.connect", "getaddrinfo": "socket.getaddrinfo", "sleep": "time.sleep", "umount": "libc.umount2", "cpu": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """The calls caught by probe, and the log."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.aio.guarded"], cwd=REPO, capture_output=True, text=True, check=False, timeout=50
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize(("probe", "call"), CALLS.items())
def test_what_can_block_is_caught_on_the_loops_thread(guarded: Any, probe: str, call: str) -> None:
    assert call in guarded[0][probe]


@pytest.mark.parametrize("probe", ["import", "traceback", "null", "little cpu", "in a thread"])
def test_what_cannot_block_is_let_through(guarded: Any, probe: str) -> None:
    assert guarded[0][probe] == []


def test_nothing_is_caught_before_the_loop_runs(guarded: Any) -> None:
    assert not [event for event in guarded[1] if event.get("subject", "").endswith("/before")]


def test_the_innermost_code_of_the_agent_is_named_once_for_each_place(guarded: Any) -> None:
    events = guarded[1]
    assert {event["event"] for event in events} == {loopguard.EVENT}
    places = [(event["call"], event["place"]) for event in events]
    assert len(places) == len(set(places))
    (reading,) = {event["place"].partition(":")[0] for event in events if event.get("subject") == "/proc/self/status"}
    assert reading == "agent/pods/facts.py"  # and not pathlib, which opens it


def test_a_callback_that_computes_is_named_with_its_time(guarded: Any) -> None:
    (event,) = (event for event in guarded[1] if event["call"] == "cpu")
    assert event["milliseconds"] >= loopguard.CPU_BUDGET * 1000
    assert "guarded.py" in event["place"]
