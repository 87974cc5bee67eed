"""Puts the end-to-end tests on a node of their own, and checks after each that uses the daemon that nothing is left there.

However pytest is started, it is carried on inside `tests/e2e/enter`; the shims and engines are fetched before, since nothing can be from
there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import toolbox
from tests.e2e.node import CGROUP_PARENT, NodeSnapshot

HERE = Path(__file__).parent
TEST_BUDGET = 180  # seconds; a whole pod's life several times over, on a machine with two busy cores


def pytest_configure(config: pytest.Config) -> None:
    if CGROUP_PARENT:
        return
    if os.geteuid() != 0:
        raise pytest.UsageError("The end-to-end tests mount, unshare and start containers: they need root.")
    toolbox.prepare()
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()
    enter = str(HERE / "enter")
    os.execv(enter, [enter, sys.executable, "-m", "pytest", *config.invocation_params.args])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_BUDGET))


@pytest.fixture(params=toolbox.PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> toolbox.Pair:
    """Each of the six pairs of shim and engine."""
    chosen: toolbox.Pair = request.param
    return chosen


@pytest.fixture
def node_is_clean(tmp_path: Path) -> Iterator[None]:
    """Fails the test that leaves anything on the node: processes, mounts, namespaces, cgroups, sockets, FIFOs, leases, bundles, state."""
    before = NodeSnapshot.take(tmp_path)
    yield
    left = before.left()
    assert not left, "left on the node:\n  " + "\n  ".join(left)
