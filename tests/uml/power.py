"""The power matrix: a node in user-mode Linux loses its power at every failpoint that the kubelet's verbs pass, one after the other.

    make power-matrix                            all verbs, with systemd's cgroup driver and crun, then with cgroupfs and runc
    make power-matrix POWER='--driver systemd --verb StopPodSandbox'

Which failpoints a verb passes is noted first, when it is let come to its end; the power goes then, too. Each cut's disk is the node of the
next one: after the boot nothing may have stayed, the kubelet's retries have to work, and again nothing may be left. Where that isn't so,
the table says it, and a new node carries on. `tests/e2e/test_uml_power.py` plays a part of it each day.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import toolbox
from tests.e2e.client import BUSYBOX
from tests.e2e.daemon import PAUSE
from tests.e2e.node import CGROUP_PARENT
from tests.e2e.stories import STORIES
from tests.images import busybox_image
from tests.uml import node as uml
from tests.uml.orlop import OrlopNode
from tests.uml.stage import CHECKED, VERBS, Request, Wanted

ENGINES = {"systemd": "crun", "cgroupfs": "runc"}
"""Cgroup driver -> the engine that is tried with it."""
AT_ITS_END = "(its end)"
NOTHING_LEFT, NOT_PASSED = "nothing left", "not passed"


@dataclass
class Cut:
    """One row of the table."""

    driver: str
    verb: str
    story: str
    point: str
    """The failpoint, or AT_ITS_END."""
    result: str = ""
    """NOTHING_LEFT, NOT_PASSED, or what was wrong."""
    seconds: float = 0.0
    """From the boot before to the check after, on a machine as busy as it was."""

    def __str__(self) -> str:
        result = self.result.strip().splitlines()[-1] if self.result else ""
        return f"{self.driver:9} {self.verb:17} {self.story:27} {self.point:32} {self.seconds:4.0f} s  {result}"


class Power:
    """One node with a cgroup driver; `make` gives a new one, also after a cut that spoilt it. `end` when all is cut, then see `cuts`."""

    def __init__(self, driver: str, make: Callable[[], OrlopNode], say: Callable[[Cut], None] = lambda _: None) -> None:
        """`say` is told of each cut when it is known what came of it."""
        self.cuts: list[Cut] = []
        self._driver = driver
        self._make = make
        self._say = say
        self._node: OrlopNode | None = None
        self._wanted = Wanted()
        self._last: Cut | None = None
        self._began = time.monotonic()

    def all_of(self, verb: str) -> None:
        """Cuts at every failpoint of a verb."""
        seen: set[str] = set()
        for story in STORIES[verb]:
            for point in self.points(verb, story.__name__):
                if point not in seen:
                    self.cut(verb, story.__name__, point)
                    seen.add(point)

    def points(self, verb: str, story: str) -> list[str]:
        """The failpoints that the call of a story passes, in order; the power goes when it has ended."""
        return list(dict.fromkeys(self._play(Cut(self._driver, verb, story, AT_ITS_END), "")))

    def cut(self, verb: str, story: str, point: str) -> None:
        """Cuts at one failpoint."""
        self._play(Cut(self._driver, verb, story, point), point)

    def end(self) -> None:
        """Looks at what the last cut has left, and takes the power away for good."""
        if self._last is not None:
            self._stage(Request(self._wanted))
        self._drop()

    def _play(self, cut: Cut, point: str) -> list[str]:
        said = self._stage(Request(self._wanted, cut.story, point))
        if CHECKED not in said:  # that was the last cut's fault
            said = self._stage(Request(Wanted(), cut.story, point))
        self.cuts.append(cut)
        if self._node is None:
            self._tell(cut, f"it came to no cut: {said}")
            return []
        answer = json.loads(said.splitlines()[-1])
        passed: list[str] = answer["passed"]
        self._wanted, self._last = Wanted(**answer["wanted"]), cut
        if point and point not in passed:
            cut.result = NOT_PASSED
        try:
            self._node.power_cut()
        except AssertionError as error:
            self._tell(cut, f"the node did not come back: {error}")
            self._drop()
        return passed

    def _stage(self, request: Request) -> str:
        """What the node says; `_node` is None if it failed. The last cut gets its result."""
        if self._node is None:
            self._node = self._make()
        try:
            done = self._node.stage(request.encoded())
            said, failed = done.stdout, bool(done.returncode)
        except AssertionError as error:
            said, failed = str(error), True
        if self._last is not None:
            self._tell(self._last, (self._last.result or NOTHING_LEFT) if CHECKED in said else said)
        if failed:
            self._drop()
        return said

    def _tell(self, cut: Cut, result: str) -> None:
        now = time.monotonic()
        cut.result, cut.seconds, self._began, self._last = result, now - self._began, now, None
        self._say(cut)

    def _drop(self) -> None:
        if self._node is not None:
            self._node.node.cut()
        self._node, self._wanted = None, Wanted()


def nodes(home: Path, driver: str) -> Callable[[], OrlopNode]:
    """Makes nodes for `Power`, with the images that the stories want."""
    busybox = busybox_image(home / "busybox.tar", BUSYBOX)
    pause = busybox_image(home / "pause.tar", PAUSE, {"Entrypoint": ["/bin/sleep", "1000000"], "Cmd": []})
    numbers = itertools.count(1)

    def make() -> OrlopNode:
        node = uml.Node(home, f"{driver}-{next(numbers)}")
        return OrlopNode(node, toolbox.Pair("2.1", ENGINES[driver]), driver, busybox, pause)

    return make


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.uml.power", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--driver", action="append", choices=ENGINES, help="one or more; all by default")
    parser.add_argument("--verb", action="append", choices=VERBS, help="one or more; all by default")
    options = parser.parse_args()
    if not CGROUP_PARENT:
        toolbox.prepare()
        uml.prepare()
        enter = str(toolbox.REPO / "tests/e2e/enter")
        os.execv(enter, [enter, sys.executable, "-m", "tests.uml.power", *sys.argv[1:]])
    cuts: list[Cut] = []
    for driver in options.driver or ENGINES:
        with tempfile.TemporaryDirectory(prefix="orlop-power-") as home:
            power = Power(driver, nodes(Path(home), driver), lambda cut: print(cut, flush=True))
            for verb in options.verb or VERBS:
                power.all_of(verb)
            power.end()
            cuts += power.cuts
    bad = [cut for cut in cuts if cut.result != NOTHING_LEFT]
    for cut in bad:
        print(f"\n{cut}\n{cut.result}")
    print(f"\n{len(cuts)} cuts, nothing left after {len(cuts) - len(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
