"""An exit that gets lost inside the agent, as a bug would have it: the container doesn't run for ever, and its neighbours don't pay."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import shims

pytestmark = [pytest.mark.e2e, one_pair]


@pytest.mark.parametrize("stopped_by", ["container", "pod"])
def test_a_stop_finds_it(daemon: Daemon, tmp_path: Path, stopped_by: str) -> None:
    daemon.restart(failpoints="pods.exits.record=1*error(lost)", timeouts="EXIT_AFTER_KILL=1")
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
