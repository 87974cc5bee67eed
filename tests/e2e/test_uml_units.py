"""The units in `deploy/`, run by a real systemd: what they take away is not missed, and what they give is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.toolbox import REPO, Pair
from tests.uml.node import PYTHON, Node
from tests.uml.orlop import OrlopNode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROGRAM = "/usr/local/bin/orlop"
LOOK = """
from urllib.request import urlopen
import time
deadline = time.monotonic() + 100
while b'orlop_audits_total{' not in (text := urlopen("http://127.0.0.1:9745/metrics").read()) and time.monotonic() < deadline:
    time.sleep(0.5)
for line in text.decode().splitlines():
    name, _, value = line.partition(" ")
    if name.startswith(("orlop_audits", "orlop_unknown")) and value != "0.0":
        print(name)
"""
"""What the first audit could look at."""


@pytest.fixture(scope="module")
def orlop(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[OrlopNode]:
    """A node with Orlop, by its own unit."""
    node = Node(tmp_path_factory.mktemp("units"), "units")
    try:
        orlop = OrlopNode(node, Pair("2.1", "crun"), "systemd", busybox)
        node.run("systemctl stop orlop")
        for unit in ("orlop.service", "orlop-watch.service"):
            (node.share / unit).write_text((REPO / "deploy" / unit).read_text().replace(PROGRAM, f"{PYTHON.parent}/orlop"))
            node.run(f"install -m 644 {node.share / unit} /etc/systemd/system/{unit}")
        node.run("systemctl daemon-reload")
        yield orlop
    finally:
        node.cut()


def shown(node: Node, unit: str, *properties: str) -> list[str]:
    return node.run(f"systemctl show --value {' '.join(f'-p {name}' for name in properties)} {unit}").stdout.split()


def test_serve_runs_pods_which_outlive_it(orlop: OrlopNode) -> None:
    orlop.start()
    orlop.kubelet("up")
    orlop.node.run("systemctl restart orlop")
    orlop.kubelet("down")
    orlop.node.run("systemctl stop orlop")
    assert shown(orlop.node, "orlop", "Result") == ["success"]


def test_watch_can_look_at_everything_from_its_sandbox_and_has_no_mount_namespace(orlop: OrlopNode) -> None:
    node = orlop.node
    script = node.share / "look.py"
    script.write_text(LOOK)
    node.run("systemctl start orlop-watch || { systemctl status -n 100 orlop-watch; exit 1; }")
    assert node.run(f"{PYTHON} -B {script}").stdout.splitlines() == ['orlop_audits_total{result="complete"}']
    [pid] = shown(node, "orlop-watch", "MainPID")
    [own, its] = node.run(f"readlink /proc/1/ns/mnt /proc/{pid}/ns/mnt").stdout.split()
    assert own == its
    status = node.run(f"cat /proc/{pid}/status").stdout.split("\n")
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    node.run("systemctl stop orlop-watch")
    assert sorted(shown(node, "orlop-watch", "Result", "NRestarts")) == ["0", "success"]
