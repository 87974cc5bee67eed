"""The chart's pod on a node with systemd and pure cgroup v2, where it has a cgroup namespace: it sees the node's cgroups all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from deploy.image import built
from tests import helm
from tests.e2e.daemonset import pod_of
from tests.e2e.toolbox import Pair
from tests.uml.node import PYTHON, Node
from tests.uml.orlop import OrlopNode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

POD = "/sys/fs/cgroup/kubepods.slice/kubepods-pod0f0e1d2c_0001_4a5b_8c9d_aabbccddeeff.slice"
PLANT = f"mkdir -p {POD}; (echo $BASHPID > {POD}/cgroup.procs; exec sleep 1000 > /dev/null 2>&1) &"
"""A pod that no runtime has, in whose cgroup a process is left: without that it would be a kubelet's to remove."""
LOOK = """
from urllib.request import urlopen
import time
deadline = time.monotonic() + 200
text = ""
while 'orlop_audits_total{result="complete"} ' not in text and time.monotonic() < deadline:
    time.sleep(1)
    try:
        text = urlopen("http://127.0.0.1:9745/metrics").read().decode()
    except OSError as error:
        text = str(error)
for line in text.splitlines():
    name, _, value = line.partition(" ")
    if name.startswith(("orlop_leaks{", "orlop_missing", "orlop_unknown", "orlop_audits")) and value != "0.0":
        print(line)
"""


@pytest.fixture
def orlop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrlopNode]:
    """With the image of the watch."""
    node = Node(tmp_path_factory.mktemp("daemonset"), "daemonset")
    try:
        yield OrlopNode(node, Pair("2.1", "crun"), "systemd", built())
    finally:
        node.cut()


def test_from_its_cgroup_namespace_it_sees_what_is_left_in_the_cgroups_of_the_node(orlop: OrlopNode) -> None:
    node = orlop.node
    values = {"watch": {"interval": 10, "grace": 0}, "extraHostPaths": [{"name": "orlop", "path": "/var/lib/orlop"}]}
    [texts] = helm.render(values)
    manifest, look = node.share / "pod.yaml", node.share / "look.py"
    manifest.write_text(yaml.safe_dump(pod_of(helm.documents(texts), "leaks-orlop", node.share, "127.0.0.1")))
    look.write_text(LOOK)
    node.run(f"bash -c '{PLANT}'")
    orlop.orlop(f"run {manifest}")
    found = node.run(f"{PYTHON} -B {look}", budget=240).stdout.splitlines()
    assert found == ['orlop_leaks{kind="cgroup",owner="unknown"} 1.0', 'orlop_audits_total{result="complete"} 1.0'], node.run(
        "cat /var/log/pods/*/watch/*.log"
    ).stdout
    [own, its] = node.run("readlink /proc/1/ns/cgroup /proc/$(pgrep -f 'orlop watch')/ns/cgroup").stdout.split()
    assert own != its
