"""The churn soak: pods come and go by the hundred while all that works for them is being killed, and nothing may stay.

    first    a tenth of the pods, with a daemon that has just been started and is left alone
    middle   four tenths, the daemon killed as well, again and again, also while it recovers
    last     the other half, with a daemon that has just been started and is left alone

Memory and file descriptors are those of a daemon without pods. They are taken at the same age, after a tenth of the pods: in `first` and in
`last`, which shows what a node's past costs a daemon; and after each further tenth of `last`, which shows what it keeps itself. There the
second tenth is compared with the last: it is in the first ones that a new process grows to its size.
Used by `make soak` and, in small, by `tests/e2e/test_soak.py`. Runs on the node of `tests/e2e/enter`.
"""

from __future__ import annotations

import functools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cri.api import admin_pb2 as admin
from tests.e2e.client import until
from tests.e2e.daemon import Daemon
from tests.e2e.node import NodeSnapshot
from tests.e2e.toolbox import Pair
from tests.soak.killer import WEIGHTS, Killer
from tests.soak.kubelet import PodLife, Tally

KILLS_PER_POD = 0.5
MORE_MEMORY = 1.05
SETTLED = 1.5
"""Seconds for which file descriptors are looked at: what is open for a moment, as by an audit, is not in all looks."""
FEWEST = 50
"""A daemon that has had fewer pods is still growing: its memory says nothing."""
KINDS = {
    "shim": r"process .*containerd-shim-",
    "other process": r"process ",
    "mount": r"mount ",
    "network namespace": r"\w+ /(var/)?run/netns/",
    "IP lease": r"\w+ /var/lib/cni/",
    "link": r"link ",
    "nat chain": r"nat chain ",
    "cgroup": r"cgroup ",
    "FIFO": r"FIFO ",
    "socket": r"socket ",
    "bundle": r"\w+ /.*/io\.containerd\.runtime\.v2\.task",
    "engine state": r"\w+ /run/orlop-e2e/[^/]+/runc",
    "snapshot": r"\w+ /.*/snapshots",
    "other file": r"",
}
"""What can be left -> how `NodeSnapshot` calls it; the first that fits counts."""


@dataclass(frozen=True)
class Measured:
    """What a daemon without pods takes: KiB of memory, of it KiB that no file backs, and file descriptors."""

    pods: int
    """That it has served."""
    resident: int
    anonymous: int
    descriptors: tuple[str, ...]
    """What they are, in order."""

    @classmethod
    def take(cls, pid: int, pods: int) -> Measured:
        looks = []
        for _ in range(10):
            time.sleep(SETTLED / 10)
            looks.append(Counter(_opened(pid)))
        always = functools.reduce(lambda one, other: one & other, looks)
        status = Path(f"/proc/{pid}/status").read_text()
        resident, anonymous = (int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[0]) for name in ("VmRSS", "RssAnon"))
        return cls(pods, resident, anonymous, tuple(sorted(always.elements())))

    def __str__(self) -> str:
        memory = f"{self.resident / 1024:.1f} MiB resident, {self.anonymous / 1024:.1f} MiB of it anonymous"
        return f"{memory}, {len(self.descriptors)} file descriptors, after {self.pods} pods"


def _opened(pid: int) -> Iterator[str]:
    """What its file descriptors are, without numbers, which differ from daemon to daemon."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield re.sub(r"\d+", "N", os.readlink(link))


class Soak:
    """One run; `report()` and `problems()` when it is through."""

    def __init__(self, home: Path, pair: Pair, image: Path, *, pods: int, parallel: int, seed: int) -> None:
        """`image` is an archive of the tests' busybox."""
        self.tally = Tally()
        self._pair = pair
        self._pods = pods
        self._parallel = parallel
        self._seed = seed
        self._logs = home / "logs"
        self._logs.mkdir()
        self._image = image
        self._dice = random.Random(seed)
        self._number = 0
        # Without the loop guard, which a busy machine trips, and which takes memory.
        self.daemon = Daemon(home, pair, name="soak", log_settings='level = "debug"\nformat = "json"', guard=False)
        self._killer = Killer(self.daemon, seed)
        self._measured: list[tuple[str, Measured]] = []
        self._left: list[str] = []
        self._owned: list[str] = []
        self._audit: tuple[int, str] = (-1, "not run")
        self._seconds = 0.0

    def run(self, say: Callable[[str], None] = lambda _: None) -> None:
        """From an empty node to an empty node; tells `say` how far it is."""
        self.daemon.start()
        self.daemon.client.admin.ImportImage(admin.ImportImageRequest(path=str(self._image)))
        before = NodeSnapshot.take(self.daemon.root)
        began = time.monotonic()
        first, middle = max(10, self._pods // 10), self._pods * 4 // 10
        try:
            with self._killer:
                self._phase("first", first, say)
                self._measured.append(("first", self._measure(first)))
                self._phase("middle", middle, say, daemon=True)
            self.daemon.restart()
            with self._killer:
                served, last = 0, self._pods - first - middle
                while served < last:
                    some = min(first, last - served)
                    self._phase("last", some, say)
                    served += some
                    self._measured.append(("last", self._measure(served)))
            self._seconds = time.monotonic() - began
            self._owned = [f"{entry.kind} {entry.key}: {entry.state} {entry.error}" for entry in self.daemon.client.ledger()]
            done = self.daemon.orlop("audit", check=False)
            self._audit = (done.returncode, (done.stdout + done.stderr).strip())
        finally:
            self.daemon.stop()
            self.daemon.client.close()
        self._left = before.left(within=30)

    def _phase(self, name: str, pods: int, say: Callable[[str], None], *, daemon: bool = False) -> None:
        say(f"{name}: {pods} pods, {self._parallel} at a time")
        kinds = [kind for kind in WEIGHTS if daemon or kind != "daemon"]

        def live(number: int, dice: random.Random, kill: str | None) -> None:
            if kill is not None:
                self._killer.order(kill)
            PodLife(self.daemon.client, self.tally, self._logs, f"pod-{number}", dice).live()
            if number % 50 == 0:
                say(f"  pod {number} has gone; killed so far: {sum(self._killer.killed.values())}")

        with ThreadPoolExecutor(self._parallel) as pool:
            running = []
            for _ in range(pods):
                self._number += 1
                kill = self._dice.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0] if self._dice.random() < KILLS_PER_POD else None
                running.append(pool.submit(live, self._number, random.Random(f"{self._seed} {self._number}"), kill))
            for pod in running:
                pod.result()

    def _measure(self, pods: int) -> Measured:
        self._killer.settle()
        until(lambda: not self.daemon.client.ledger(), what="the ledger is empty", within=60, detail=self.daemon.client.ledger)
        return Measured.take(self.daemon.pid, pods)

    # ---- what came of it

    def problems(self) -> list[str]:
        """Why it failed; empty if it didn't."""
        found = list(self.tally.wrong)
        found += [f"left on the node: {thing}" for thing in self._left] + [f"left in the ledger: {entry}" for entry in self._owned]
        if self._audit[0] != 0:
            found.append(f"orlop audit ended with {self._audit[0]}: {self._audit[1]}")
        first, same_age, *later = [measured for _, measured in self._measured]
        comparisons = [("a node's past", first, same_age)]
        if later:
            comparisons.append(("its own", later[0], later[-1]))
        for what, than, now in comparisons:
            if now.descriptors != than.descriptors:
                more, fewer = (Counter(one.descriptors) - Counter(other.descriptors) for one, other in ((now, than), (than, now)))
                found.append(f"file descriptors, by {what}: more are {dict(more)}, fewer {dict(fewer)}")
            if than.pods >= FEWEST and now.resident > MORE_MEMORY * than.resident:
                found.append(f"memory, by {what}: {than.resident} KiB, then {now.resident} KiB")
        return found

    def report(self) -> str:
        """The table."""
        killed = {kind: self._killer.killed[kind] for kind in [*WEIGHTS, "daemon, in its recovery"]}
        rows: list[tuple[str, object]] = [
            ("shim and engine", self._pair),
            ("seed", self._seed),
            ("pods that came and went", f"{self.tally.seen.pop('pods', 0)} of {self._pods}, {self._parallel} at a time"),
            ("seconds", f"{self._seconds:.0f}"),
            *((f"killed: {kind}", f"{number}{self._missed(kind)}") for kind, number in killed.items()),
            *((f"calls: {verb}", number) for verb, number in sorted(self.tally.calls.items())),
            *((f"failed and done again: {what}", number) for what, number in sorted(self.tally.failed.items())),
            *((f"seen: {what}", number) for what, number in sorted(self.tally.seen.items())),
            *((f"daemon in {phase}", measured) for phase, measured in self._measured),
            *((f"left: {kind}", number) for kind, number in self._left_by_kind().items()),
            ("left: entry in the ledger", len(self._owned)),
            ("orlop audit", f"exit code {self._audit[0]}, {self._audit[1]}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)

    def _missed(self, kind: str) -> str:
        missed = self._killer.missed[kind]
        return f" ({missed} times there was none)" if missed else ""

    def _left_by_kind(self) -> dict[str, int]:
        counted = Counter(next(kind for kind, form in KINDS.items() if re.match(form, thing)) for thing in self._left)
        return {kind: counted[kind] for kind in KINDS}
