"""The main job: a pod with a container, its log, a command in it, and nothing left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.daemon import Daemon

pytestmark = pytest.mark.e2e


def test_a_pod_runs_and_goes(daemon: Daemon, tmp_path: Path) -> None:
    kubelet = daemon.client
    pod = kubelet.run_pod(log_directory=tmp_path)
    container = kubelet.run_container(pod, ["sh", "-c", "echo out; echo err >&2; sleep 1000"], env={"WORD": b"\xc3\xa4"})
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    executed = kubelet.exec_sync(container, "sh", "-c", 'printf "%s" "$WORD"; exit 3')
    assert (executed.stdout, executed.exit_code) == (b"\xc3\xa4", 3)
    kubelet.stop(container)
    assert kubelet.wait_exit(container).exit_code == 137
    assert sorted((line.stream, line.text) for line in kubelet.logs(container)) == [("stderr", "err"), ("stdout", "out")]
    kubelet.remove(container)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert kubelet.pods() == []
