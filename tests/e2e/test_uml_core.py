"""The core on real nodes: systemd as process 1, pure cgroup v2, with both cgroup drivers and both engines.

The tests are those of the files below, run by a pytest inside of user-mode Linux; here each run of them is one test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.toolbox import REPO
from tests.uml.node import PYTHON, Node

BUDGET = 900.0
"""Seconds for one run; on a machine with nothing else to do it takes a tenth."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(BUDGET + 120)]

PARENTS = {"systemd": "/e2e.slice", "cgroupfs": "/e2e"}
"""By driver, where pods go; a kubelet makes these at its start."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("core"), "core")
    try:
        node.boot()
        node.run("systemctl start e2e.slice; mkdir /sys/fs/cgroup/e2e")
        yield node
    finally:
        node.cut()


@pytest.mark.parametrize("engine", ["runc", "crun"])
@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
def test_core(node: Node, driver: str, engine: str) -> None:
    files = "tests/e2e/test_pods.py tests/e2e/test_container_spec.py"
    options = f"-p no:cacheprovider --basetemp=/var/tmp/{driver}-{engine} -k shim2.1-{engine}"
    done = node.run(f"cd {REPO}; ORLOP_E2E_CGROUP={PARENTS[driver]} {PYTHON} -B -m pytest {options} {files}", budget=BUDGET)
    assert " passed" in done.stdout
    assert node.run("systemctl list-units --failed --plain --no-legend").stdout == "", "scopes that failed are not kept"
