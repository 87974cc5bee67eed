"""The core on real nodes: systemd as process 1, pure cgroup v2, with both cgroup drivers and both engines.

The tests are those of the files below, run by a pytest inside of user-mode Linux; here each run of them is one test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.toolbox import REPO
from tests.uml.node import PYTHON, Node

BUDGET = 1500.0
"""Seconds for one run; on a machine with nothing else to do it takes a tenth."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(BUDGET + 120)]

PARENTS = {"systemd": "/e2e.slice", "cgroupfs": "/e2e"}
"""By driver, where pods go; a kubelet makes these at its start."""


CORE = "tests/e2e/test_pods.py tests/e2e/test_container_spec.py"
FILES = {"runc": CORE, "crun": f"{CORE} tests/e2e/test_update.py tests/e2e/test_stats.py tests/e2e/test_sandbox_metrics.py"}
"""By engine; what reads and changes cgroups, but is not of the core, with one of them."""
NOT_THERE = "tests/e2e/test_stats.py::TestLists::test_many_containers_each_with_its_own_numbers"
"""The clock of the scheduler ticks a hundred times a second there, so that a container that only sleeps has used no CPU time."""


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
    options = f"-p no:cacheprovider -o faulthandler_timeout=0 --basetemp=/var/tmp/{driver}-{engine} -k shim2.1-{engine}"
    options += f" --deselect {NOT_THERE}"
    done = node.run(f"cd {REPO}; ORLOP_E2E_CGROUP={PARENTS[driver]} {PYTHON} -B -m pytest {options} {FILES[engine]}", budget=BUDGET)
    assert " passed" in done.stdout
    assert node.run("systemctl list-units --failed --plain --no-legend").stdout == "", "scopes that failed are not kept"
