"""Power cuts of a real node, with systemd as process 1, in the middle of a verb: what is left is what was on the disk.

The verb is held at a failpoint when user-mode Linux is killed. /run is gone with the memory, and with it the old boot's processes,
namespaces and mounts; writable layers, addresses that host-local has given away, and half of what was being written are still there.
A slice of `make power-matrix`, another one each day; `ORLOP_POWER_SLICE` plays one again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stories import STORIES
from tests.e2e.toolbox import Pair
from tests.uml.node import Node
from tests.uml.orlop import OrlopNode
from tests.uml.power import ENGINES, NOTHING_LEFT, Cut, Power
from tests.uml.stage import VERBS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STORIES_OF_VERBS = [(verb, story.__name__) for verb in VERBS for story in STORIES[verb]]
SLICE = int(os.environ.get("ORLOP_POWER_SLICE", time.time() // 86400))
CUTS = 5


@pytest.fixture(scope="module", params=ENGINES.items(), ids="-".join)
def orlop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path, pause: Path) -> Iterator[OrlopNode]:
    """A node with Orlop, which one test after the other takes the power from."""
    driver, engine = request.param
    node = Node(tmp_path_factory.mktemp("power"), f"power-{driver}")
    try:
        yield OrlopNode(node, Pair("2.1", engine), driver, busybox, pause)
    finally:
        node.cut()


def test_the_driver(orlop: OrlopNode) -> None:
    assert orlop.kubelet("driver").strip() == orlop.driver, "the kubelet is told what the engines do"
    assert f"v2, driver {orlop.driver}" in " ".join(orlop.orlop("doctor").split())


def test_pods_outlive_the_daemons_unit(orlop: OrlopNode) -> None:
    """Shims are in a unit of their own, which goes when there is no daemon and no pod."""
    orlop.kubelet("up")
    orlop.node.run("systemctl restart orlop")
    orlop.kubelet("down")
    orlop.node.run("systemctl stop orlop")
    assert orlop.node.run("ls -d /sys/fs/cgroup/system.slice/*orlop* /sys/fs/cgroup/*orlop* || true").stdout.splitlines() == [
        "ls: cannot access '/sys/fs/cgroup/*orlop*': No such file or directory",
        "/sys/fs/cgroup/system.slice/orlop-commands.service",
    ]
    orlop.start()


@pytest.mark.field_fault("19", "24")
def test_the_power_goes_in_the_middle_of_a_verb(orlop: OrlopNode, capsys: pytest.CaptureFixture[str]) -> None:
    """At some of the failpoints that it passes, and at its end."""
    verb, story = STORIES_OF_VERBS[(SLICE + list(ENGINES).index(orlop.driver) * len(STORIES_OF_VERBS) // 2) % len(STORIES_OF_VERBS)]
    told: list[Cut] = []
    nodes = iter([orlop])
    power = Power(orlop.driver, lambda: next(nodes, None) or pytest.fail(told[-1].result), told.append)
    points = power.points(verb, story)
    first = SLICE // len(STORIES_OF_VERBS) * CUTS
    for point in dict.fromkeys(points[number % len(points)] for number in range(first, first + CUTS)):
        power.cut(verb, story, point)
    power.end()
    with capsys.disabled():
        print(f"\nORLOP_POWER_SLICE={SLICE}", *told, sep="\n")
    assert [cut.result for cut in told] == [NOTHING_LEFT] * len(power.cuts)
