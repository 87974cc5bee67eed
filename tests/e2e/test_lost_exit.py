"""An exit that gets lost inside the agent, as a bug would have it: the container doesn't run for ever, and its neighbours don't pay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import until
from tests.e2e.conftest import clean_afterwards, one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import shims
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]


@pytest.fixture
def daemon(tmp_path: Path, pair: Pair, busybox: Path) -> Iterator[Daemon]:
    """A daemon that loses the first exit it is told of."""
    daemon = Daemon(tmp_path, pair, timeouts="EXIT_AFTER_KILL=1.0")
    daemon.start(failpoints="pods.exits.record=1*error(lost)")
    daemon.orlop("image", "import", busybox)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.client.remove_all()
        daemon.stop()
    daemon.client.close()


@pytest.mark.field_fault("7")
@pytest.mark.parametrize("stopped_by", ["container", "pod"])
def test_a_stop_finds_it(daemon: Daemon, tmp_path: Path, stopped_by: str) -> None:
    kubelet = daemon.client
    pod = kubelet.run_pod(log_directory=tmp_path)
    [shim] = shims(pod.id)
    neighbour = kubelet.run_container(pod)
    container = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/stop ]; do sleep 0.02; done; exit 5"])
    kubelet.exec_sync(container, "touch", "/tmp/stop")
    until(lambda: "lost" in daemon.log.read_text(), what="the exit got lost")
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    if stopped_by == "pod":
        kubelet.stop_pod(pod)
    else:
        kubelet.stop(container)
        assert shims(pod.id) == [shim]
        assert kubelet.status(neighbour).state == cri.CONTAINER_RUNNING
    status = kubelet.status(container)
    assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 5)
