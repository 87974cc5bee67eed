"""When to kill a process that works for the agent, and whether that was done: for `test_kills.py`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tests.e2e.client import until
from tests.e2e.faults import Rig
from tests.e2e.node import Process, process, processes

T = TypeVar("T")
Find = Callable[[Process], bool]
"""Whether a process is one that is meant."""

PATIENCE = 1.0
"""Seconds that a process has to stop in, once it is told to."""


class Moment(Protocol):
    """When a process is killed."""

    def strike(self, rig: Rig, doing: Future[object], find: Find) -> bool:
        """Kills one while the agent is `doing` something; whether there was one, which had not ended by itself."""

    def arm(self, rig: Rig) -> None:
        """Has to be called before the agent begins."""


@dataclass(frozen=True)
class AtFailpoint:
    """The agent is held at a failpoint, let go, and `delay` seconds later the process is killed."""

    point: str
    nth: int
    delay: float

    def arm(self, rig: Rig) -> None:
        rig.daemon.failpoints(f"{self.point}={self.nth}*pause")

    def strike(self, rig: Rig, doing: Future[object], find: Find) -> bool:
        until(lambda: doing.done() or rig.daemon.failpoints().count(self.point) >= self.nth, what=f"the agent comes to {self}")
        rig.daemon.failpoints("")
        time.sleep(self.delay)
        return any(map(kill, list(filter(find, processes()))[:1]))


@dataclass(frozen=True)
class AtCall:
    """A program is killed `delay` seconds after it was seen to have begun: the `nth` one."""

    nth: int
    delay: float

    def arm(self, rig: Rig) -> None:
        pass

    def strike(self, rig: Rig, doing: Future[object], find: Find) -> bool:
        old = set(os.listdir("/proc"))  # only what is new is looked at: programs may run for some milliseconds
        seen: set[int] = set()
        while not doing.done():
            for number in set(os.listdir("/proc")) - old:
                if not number.isdigit() or (found := process(int(number))) is None or not find(found):
                    continue
                seen.add(found.pid)
                if len(seen) == self.nth:
                    time.sleep(self.delay)
                    return kill(found)
        return False


def kill(victim: Process) -> bool:
    """SIGKILL, in the middle of whatever it does: it is stopped before, so that it can't have ended by itself."""
    try:
        handle = os.pidfd_open(victim.pid)
    except ProcessLookupError:
        return False
    try:
        deadline = time.monotonic() + PATIENCE
        while (state := _state(victim)) != "T":
            if state in ("", "Z") or time.monotonic() > deadline:
                return False
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _state(victim: Process) -> str:
    """Of this very process; "" if it is gone."""
    try:
        fields = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return fields[0] if int(fields[19]) == victim.start_time else ""


def spread(moments: Sequence[T], wanted: int, offset: int) -> Iterator[T]:
    """All of them, and first some `wanted` many that lie evenly between the first and the last."""
    step = max(1, len(moments) // wanted)
    for start in range(step):
        yield from moments[(start + offset) % step :: step]
