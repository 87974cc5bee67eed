"""Kills what works for pods, one after the other: what `tests.soak.soak` orders, when there is one to be killed.

Most are processes that live for milliseconds, so an order is a wait for the next one. SIGKILL goes to a pidfd whose process has
been looked at again: never to a number.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress

from tests.e2e.daemon import CNI_PLUGINS, Daemon
from tests.e2e.node import Process, process, processes

WEIGHTS = {"shim": 4, "engine": 4, "CNI plugin": 4, "log copier": 2, "daemon": 2}
"""What is killed -> how often, in proportion."""
WAIT = 5.0
"""Seconds until an order is given up, since no such process runs."""
SPREAD = 0.2
"""Seconds within which a kill comes after its order, at random; of the daemon's start, within which it is killed a second time."""


class Killer:
    """`with Killer(daemon, seed) as killer: killer.order("shim")`. At the end of the block all orders have been carried out."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.killed: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._daemon = daemon
        self._dice = random.Random(seed)
        self._orders: queue.Queue[str | None] = queue.Queue()
        self._failure: BaseException | None = None

    def __enter__(self) -> Killer:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def order(self, kind: str) -> None:
        """One of WEIGHTS, soon."""
        self._orders.put(kind)

    def settle(self) -> None:
        """Waits until all orders have been carried out."""
        self._orders.join()

    def _work(self) -> None:
        while (kind := self._orders.get()) is not None:
            try:
                if self._failure is None:
                    self._carry_out(kind)
            except BaseException as failure:  # it is raised where the block ends
                self._failure = failure
            finally:
                self._orders.task_done()
        self._orders.task_done()

    def _carry_out(self, kind: str) -> None:
        time.sleep(self._dice.uniform(0, SPREAD))
        if kind == "daemon":
            self._kill_daemon()
        else:
            (self.killed if self._kill_next(kind) else self.missed)[kind] += 1

    def _kill_daemon(self) -> None:
        """Every third dies once more while it sorts out what it found."""
        self._daemon.kill9()
        self.killed["daemon"] += 1
        if self._dice.random() < 1 / 3:
            self._daemon.start()
            time.sleep(self._dice.uniform(0, SPREAD))
            self._daemon.kill9()
            self.killed["daemon, in its recovery"] += 1
        self._daemon.start()

    def _kill_next(self, kind: str) -> bool:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            found = [other for other in processes() if other.state != "Z" and self._is(kind, other)]
            self._dice.shuffle(found)
            if any(map(kill, found)):
                return True
            time.sleep(0.002)
        return False

    def _is(self, kind: str, candidate: Process) -> bool:
        program = candidate.argv[0] if candidate.argv else ""
        match kind:
            case "shim":  # what starts and deletes them as well
                return os.path.basename(program).startswith("containerd-shim-")
            case "engine":  # `runc init` too, until it is the container's own program
                return candidate.name.startswith(self._daemon.pair.engine)
            case "CNI plugin":
                return program.startswith(f"{CNI_PLUGINS}/")
            case _:
                return "agent.logs.copier" in candidate.argv


def kill(victim: Process) -> bool:
    """Whether this very process was there to be killed."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(victim.pid)
        try:
            now = process(victim.pid)
            if now is not None and now.start_time == victim.start_time:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False
