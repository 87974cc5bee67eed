"""A process of the host that pins a container's rootfs: what can go goes, and the rest goes by itself when it lets go (decisions 20)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.client import Client, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, shim_of
from tests.e2e.node import shims

pytestmark = [pytest.mark.e2e, one_pair]  # of the rest; what holds the rootfs is tried with all at once

TIMEOUTS = "RELEASE_RETRY=1"  # or the next attempt after a few would be too far away


@contextmanager
def holding(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, in the host's mount namespace, that works in `directory`."""
    with subprocess.Popen(["sleep", "1000"], cwd=directory) as holder:
        try:
            yield holder
        finally:
            holder.kill()


@pytest.mark.field_fault("1", "16")
@pytest.mark.parametrize("shim_dies", [False, True], ids=["in order", "dead shim"])
def test_a_busy_rootfs(rig: Rig, shim_dies: bool) -> None:
    """Processes and addresses go, and so do the records; the mount stays owned, says who holds it, and goes when that one lets go."""

    def hold(handler: str) -> None:
        kubelet = rig.kubelet
        pod = kubelet.run_pod(handler=handler)
        container = kubelet.run_container(pod)
        with holding(bundle(rig, container) / "rootfs") as holder:
            if shim_dies:
                os.kill(shim_of(pod).pid, signal.SIGKILL)
                kubelet.wait_exit(container)
            else:
                kubelet.stop(container)
            wait_for_failure(kubelet, container, holder.pid)
            assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
            kubelet.stop_pod(pod)
            kubelet.remove_pod(pod)
            wait_for_failure(kubelet, container, holder.pid)
            assert shims(pod.id) == []
            left = {entry.kind for entry in kubelet.ledger() if entry.sandbox == pod.id}
            assert left <= {"task", "snapshot", "sandbox_dir", "log", "fifo"}
            audit = rig.daemon.orlop("--config", rig.daemon.config, "--output", "json", "audit", check=False)
            assert audit.returncode == 1
            assert any(str(holder.pid) in finding["why"] for finding in json.loads(audit.stdout) if finding["what"] == container)

    rig.with_each_pair(hold)
    rig.assert_clean(within=30)


def bundle(rig: Rig, container: str) -> Path:
    return rig.daemon.state / "io.containerd.runtime.v2.task/k8s.io" / container


def wait_for_failure(kubelet: Client, container: str, holder: int) -> None:
    """Waits until the ledger says that the container could not be released, and whom that is up to."""
    until(
        lambda: [entry for entry in kubelet.ledger() if (entry.kind, entry.key, entry.state) == ("task", container, "failed")],
        what=f"the release of container {container} has failed",
    )
    [task] = [entry for entry in kubelet.ledger() if (entry.kind, entry.key) == ("task", container)]
    assert f"process {holder} (sleep" in task.error


@pytest.mark.field_fault("1")
def test_a_busy_rootfs_and_a_restart(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    with holding(bundle(rig, container) / "rootfs") as holder:
        kubelet.stop(container)
        wait_for_failure(kubelet, container, holder.pid)
        rig.daemon.kill9()
        rig.daemon.start()
        wait_for_failure(kubelet, container, holder.pid)
    until(
        lambda: not [entry for entry in kubelet.ledger() if (entry.kind, entry.key) == ("task", container)], what="it is released by itself"
    )
