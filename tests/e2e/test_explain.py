"""`orlop explain`: a rootfs that is busy, a process, a shim that died, and what happened, also with the daemon down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import shims
from tests.e2e.tasks import PLUGIN

pytestmark = [pytest.mark.e2e, one_pair]


def explain(daemon: Daemon, subject: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(daemon.orlop("--output", "json", "explain", subject).stdout)
    return answer


def test_a_busy_rootfs_names_who_holds_it_until_that_lets_go(daemon: Daemon) -> None:
    client = daemon.client
    pod = client.run_pod("web")
    container = client.run_container(pod)
    rootfs = daemon.state / PLUGIN / "k8s.io" / container / "rootfs"
    with subprocess.Popen(["sleep", "1000"], cwd=rootfs) as holder:
        try:
            client.stop_pod(pod)
            until(lambda: any(entry.failed_since for entry in client.ledger()), what="the release of the rootfs has failed")
            found = explain(daemon, "web")
            [held] = [held for held in found["held"] if held["what"] == f"mount {rootfs}"]
            assert f"process {holder.pid} (sleep 1000) by its cwd {rootfs}, " in held["by"][0]
            [pending] = [entry for entry in found["resources"] if entry["failed_since"]]
            assert (pending["kind"], pending["key"], pending["attempts"] > 0) == ("task", container, True)
            assert str(holder.pid) in pending["error"]
            said = daemon.orlop("explain", container).stdout
            assert "  next: " in said
            assert "what you can do: End what holds the mount" in said
            assert explain(daemon, rootfs)["held"][0]["by"] == held["by"]
        finally:
            holder.kill()
    client.remove_pod(pod)
    until(lambda: not client.ledger(), what="all is released")
    story = explain(daemon, container)
    assert (story["subject"], story["resources"]) == (f"former pod or container {container}", [])
    steps = [entry["transition"] for entry in story["timeline"] if entry["kind"] == "task"]
    assert steps[:2] == ["intended", "held"]
    assert "failed" in steps


def test_a_process_and_a_dead_shim(daemon: Daemon) -> None:
    client = daemon.client
    pod = client.run_pod("web")
    container = client.run_container(pod)
    [shim] = shims(pod.id)
    [init] = [int(name) for name in Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()]
    found = explain(daemon, str(init))
    assert found["ids"] == [container]
    assert f"child of the shim {shim.pid} for {pod.id}, of {daemon.socket}" in found["facts"]
    daemon.stop()
    os.kill(shim.pid, signal.SIGKILL)
    found = explain(daemon, pod.id)
    assert [(finding["kind"], finding["state"]) for finding in found["findings"]] == [("shim", "missing")]
    assert {entry["kind"] for entry in found["timeline"]} >= {"netns", "cni", "shim", "task"}
    daemon.start()
