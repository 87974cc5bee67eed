"""Power cuts of a real node, with systemd as process 1, in the middle of a verb: what is left is what was on the disk.

The verb is held at a failpoint when user-mode Linux is killed. /run is gone with the memory, and with it the old boot's processes,
namespaces and mounts; writable layers, addresses that host-local has given away, and half of what was being written are still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.toolbox import Pair
from tests.uml.node import Node
from tests.uml.orlop import OrlopNode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=[("systemd", "crun"), ("cgroupfs", "runc")], ids="-".join)
def orlop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[OrlopNode]:
    """A node with Orlop, which one test after the other takes the power from."""
    driver, engine = request.param
    node = Node(tmp_path_factory.mktemp("power"), f"power-{driver}")
    try:
        yield OrlopNode(node, Pair("2.1", engine), driver, busybox)
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
@pytest.mark.parametrize(
    ("verb", "point"),
    [
        ("run", "network.add.cache"),  # the plugins are about to be called
        ("run", "runtime.shim.connect"),
        ("run", "pods.sandbox_run.record"),  # all is made, and nobody was told
        ("start", "runtime.task.create"),
        ("start", "runtime.task.start"),
        ("start", "pods.container_start.record"),
        ("stop", "cleanup.shutdown"),
        ("stop", "network.delete.cache"),
        ("stop", "store.release.drop"),
    ],
)
def test_the_power_goes_in_the_middle_of(orlop: OrlopNode, verb: str, point: str) -> None:
    uid = orlop.kubelet(f"hang {verb} {point}").strip()
    orlop.power_cut()
    orlop.kubelet(f"after {uid}")
