"""`orlop audit` and `orlop reap` beside a containerd: its leaks are found and released, and its pods live on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.identifiers import new_id
from cri.api import api_pb2 as cri
from tests.e2e import containerd
from tests.e2e.client import Client
from tests.e2e.conftest import one_pair
from tests.e2e.containerd import BUNDLES, ENGINE_ROOT, SOCKET
from tests.e2e.daemon import Daemon
from tests.e2e.node import CGROUP_PARENT, shims
from tests.e2e.tasks import make_rootfs, spec
from tests.e2e.test_audit import run

pytestmark = [pytest.mark.e2e, one_pair]

CLEAN, LEAKS, UNKNOWN = 0, 1, 2
NOW = ("--grace", "0")
"""What was leaked just now counts already."""


@pytest.fixture
def other(daemon: Daemon, tmp_path: Path, busybox: Path, pause: Path) -> Iterator[Client]:
    with containerd.serving(tmp_path / "containerd", daemon.pair, busybox, pause) as client:
        yield client


def audit(daemon: Daemon, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is found."""
    done = daemon.orlop("--output", "json", "audit", *options, check=False)
    return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)}


def leak_shim(daemon: Daemon) -> dict[str, str]:
    """One of containerd's, for a pod that it doesn't have; with its bundle."""
    bundle = BUNDLES / new_id()
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "annotations": {}}))
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    flags = ("-namespace", "k8s.io", "-address", str(SOCKET), "-publish-binary", "/bin/true", "-id", bundle.name)
    environment = {**os.environ, "TTRPC_ADDRESS": f"{SOCKET}.ttrpc", "GRPC_ADDRESS": str(SOCKET), "NAMESPACE": "k8s.io"}
    run(daemon.pair.shim_path, *flags, "start", cwd=bundle, env=environment)
    os.close(log)
    [shim] = shims(bundle.name)
    return {f"process {shim.pid} (containerd-shim-runc-v2 -id {bundle.name})": "shim", str(bundle): "bundle"}


def leak_init(daemon: Daemon, scratch: Path) -> dict[str, str]:
    """`create` without `start`, by the engine, in a container that containerd doesn't have; its shim is dead."""
    container = new_id()
    bundle = scratch / container
    make_rootfs(bundle / "rootfs")
    config = spec(container, ("sleep", "1000"))
    config["linux"]["cgroupsPath"] = f"{CGROUP_PARENT}/{container}"
    (bundle / "config.json").write_text(json.dumps(config))
    pid_file = bundle / "pid"
    with (bundle / "output").open("w") as output:  # a pipe would be held open by the init
        subprocess.run(
            [daemon.pair.engine_path, "--root", ENGINE_ROOT, "create", "--bundle", bundle, "--pid-file", pid_file, container],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, timeout=30,
        )  # fmt: skip
    pid = int(pid_file.read_text())
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return {f"process {pid} ({name})": "runc_init", str(ENGINE_ROOT / container): "engine_state"}


def leak_mount() -> dict[str, str]:
    rootfs = BUNDLES / new_id() / "rootfs"
    rootfs.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "leak", rootfs)
    return {str(rootfs): "mount", str(rootfs.parent): "bundle"}


def leak_netns() -> dict[str, str]:
    pin = Path("/run/netns/cni-leak")
    pin.touch()
    run("unshare", f"--net={pin}", "true")
    return {str(pin): "netns"}


def test_leaks_beside_a_containerd_are_found_and_released_and_its_pods_live_on(daemon: Daemon, other: Client, tmp_path: Path) -> None:
    running = other.run_container(pod := other.run_pod())
    created = other.create_container(pod)
    ours = daemon.client.run_container(daemon.client.run_pod())
    stopped = other.run_pod()
    other.stop_pod(stopped)
    assert audit(daemon, *NOW) == (CLEAN, {})

    planted = leak_shim(daemon) | leak_init(daemon, tmp_path / "init") | leak_mount() | leak_netns()
    assert audit(daemon) == (CLEAN, {})  # so young, they may be of a pod in the middle of its creation
    code, found = audit(daemon, *NOW)
    assert (code, {what: finding["kind"] for what, finding in found.items()}) == (LEAKS, planted)
    owners = {finding["kind"]: finding["owner"] for finding in found.values()}
    assert owners == dict.fromkeys(owners, "containerd") | {"netns": "unknown"}

    dry = daemon.orlop("reap", *NOW, "--dry-run", check=False)
    assert dry.returncode == LEAKS
    refused = daemon.orlop("reap", *NOW, check=False)
    assert (refused.returncode, "nobody answers: they stay" in refused.stderr) == (LEAKS, True)
    assert set(audit(daemon, *NOW)[1]) == set(planted)

    reaped = daemon.orlop("--output", "json", "reap", *NOW, "--yes")
    assert {step["outcome"] for step in json.loads(reaped.stdout)} == {"released"}, reaped.stdout
    code, found = audit(daemon, *NOW)
    assert (code, found) == (CLEAN, {}), json.dumps(found, indent=1)
    other.start(created)
    for container in (running, created):
        assert other.exec_sync(container, "echo", "alive").stdout == b"alive\n"
        assert other.status(container).state == cri.CONTAINER_RUNNING
    assert daemon.client.exec_sync(ours, "echo", "alive").stdout == b"alive\n"


def test_pods_in_the_middle_of_their_creation_are_no_leaks(daemon: Daemon, other: Client) -> None:
    def churn() -> None:
        for _ in range(3):
            pod = other.run_pod()
            other.run_container(pod)
            other.stop_pod(pod)
            other.remove_pod(pod)

    with ThreadPoolExecutor() as threads:
        churning = threads.submit(churn)
        while not churning.done():
            assert audit(daemon) == (CLEAN, {})
        churning.result()


def test_a_containerd_that_does_not_answer_keeps_everything(daemon: Daemon, other: Client) -> None:
    other.run_container(other.run_pod())
    planted = leak_mount()
    [pid] = [int(entry.name) for entry in Path("/proc").iterdir() if is_containerd(entry)]
    os.kill(pid, signal.SIGSTOP)
    try:
        code, found = audit(daemon, *NOW)
        assert (code, {finding["state"] for finding in found.values()}) == (UNKNOWN, {"unknown"}), json.dumps(found, indent=1)
        assert daemon.orlop("reap", *NOW, "--yes").returncode == CLEAN
        assert all(Path(what).exists() for what in planted)
    finally:
        os.kill(pid, signal.SIGCONT)
    daemon.orlop("reap", *NOW, "--yes")
    assert not any(Path(what).exists() for what in planted)


def is_containerd(entry: Path) -> bool:
    try:
        return entry.name.isdecimal() and (entry / "comm").read_text() == "containerd\n"
    except (FileNotFoundError, ProcessLookupError):
        return False
