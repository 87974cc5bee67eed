"""`orlop audit` finds what was leaked on purpose, calls nothing else a leak, and forgets it when it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from agent.identifiers import new_id
from tests.e2e.client import Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import runc_inits, shims
from tests.e2e.tasks import PLUGIN, make_rootfs, spec

pytestmark = pytest.mark.e2e

CLEAN, LEAKS = 0, 1
Found = set[tuple[str, str]]
"""Kind and what, in the state that a test asks for."""


def run(*argv: str | Path, **how: object) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30, **how)  # type: ignore[call-overload]  # cwd and env
    assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stderr}"


def audit(daemon: Daemon, state: str = "leaked") -> tuple[int, Found]:
    """The exit code, and what is in `state`; nothing else may be found then."""
    done = daemon.orlop("--output", "json", "audit", check=False)
    assert done.returncode in (CLEAN, LEAKS), done.stderr
    findings = json.loads(done.stdout)
    assert {finding["state"] for finding in findings} <= {state}, done.stdout
    return done.returncode, {(finding["kind"], finding["what"]) for finding in findings}


def audit_until_clean(daemon: Daemon) -> None:
    until(lambda: daemon.orlop("audit", check=False).returncode == CLEAN, what="the audit is clean")


@dataclass
class Site:
    """A daemon with a pod that has a running container, and a place for what is leaked beside it."""

    daemon: Daemon
    pod: Pod
    container: str
    scratch: Path
    undo: ExitStack

    @property
    def bundles(self) -> Path:
        return self.daemon.state / PLUGIN / "k8s.io"


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Iterator[Site]:
    pod = daemon.client.run_pod()
    container = daemon.client.run_container(pod)
    with ExitStack() as undo:
        yield Site(daemon, pod, container, tmp_path, undo)


def leak_shim(site: Site) -> Found:
    """A real one, with our address. Killed, it leaves its socket."""
    bundle = site.scratch / new_id()
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "annotations": {}}))
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    site.undo.callback(os.close, log)
    address = str(site.daemon.socket)
    environment = {**os.environ, "TTRPC_ADDRESS": str(site.daemon.state / "events.sock"), "GRPC_ADDRESS": address, "NAMESPACE": "k8s.io"}
    flags = ("-namespace", "k8s.io", "-address", address, "-publish-binary", "/bin/true", "-id", bundle.name)
    run(site.daemon.pair.shim_path, *flags, "start", cwd=bundle, env=environment)
    [shim] = shims(bundle.name)
    site.undo.callback(os.kill, shim.pid, signal.SIGKILL)
    return {("shim", f"process {shim.pid} (containerd-shim-runc-v2 -id {bundle.name})")}


def leak_mount(site: Site) -> Found:
    """A rootfs whose container nobody knows, and with it its bundle."""
    rootfs = site.bundles / new_id() / "rootfs"
    rootfs.mkdir(parents=True)
    site.undo.callback(rootfs.parent.rmdir)
    site.undo.callback(rootfs.rmdir)
    run("mount", "-t", "tmpfs", "leak", rootfs)
    site.undo.callback(run, "umount", rootfs)
    return {("mount", str(rootfs)), ("bundle", str(rootfs.parent))}


def leak_netns(site: Site) -> Found:
    pin = Path("/run/netns/cni-leak")
    pin.touch()
    site.undo.callback(pin.unlink)
    run("unshare", f"--net={pin}", "true")
    site.undo.callback(run, "umount", pin)
    return {("netns", str(pin))}


def leak_stale_pin(site: Site) -> Found:
    pin = Path("/run/netns/cni-stale")
    pin.touch()
    site.undo.callback(pin.unlink)
    return {("netns", str(pin))}


def leak_init(site: Site) -> Found:
    """`create` without `start`, by the engine of the pair, where our containers are."""
    container = new_id()
    bundle = site.scratch / container
    make_rootfs(bundle / "rootfs")
    cgroup = f"{site.pod.config.linux.cgroup_parent}/{container}"
    config = spec(container, ("sleep", "1000"))
    config["linux"]["cgroupsPath"] = cgroup
    (bundle / "config.json").write_text(json.dumps(config))
    root = site.daemon.state / "runc/k8s.io"
    engine = (site.daemon.pair.engine_path, "--root", root)
    pid_file = bundle / "pid"
    output = (bundle / "output").open("w")  # a pipe would be held open by the init
    subprocess.run(
        [*engine, "create", "--bundle", bundle, "--pid-file", pid_file, container],
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, timeout=30,
    )  # fmt: skip
    output.close()
    site.undo.callback(run, *engine, "delete", "--force", container)
    pid = int(pid_file.read_text())
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    assert name == "crun" or pid in {init.pid for init in runc_inits()}
    return {("runc_init", f"process {pid} ({name})"), ("engine_state", str(root / container)), ("cgroup", cgroup)}


def leak_process(site: Site) -> Found:
    """In a rootfs of ours, as a container has it that outlived its shim and everything that knew of it."""
    container = new_id()
    top = site.daemon.root / "snapshots/containers" / container
    for name in ("fs", "work"):
        (top / name).mkdir(parents=True)
    site.undo.callback(run, "rm", "-r", top)
    lower = make_rootfs(site.scratch / "lower")
    mounted = site.scratch / "mounted"
    mounted.mkdir()
    options = f"lowerdir={lower},upperdir={top}/fs,workdir={top}/work"
    enter = "pivot_root . tmp && /bin/busybox umount -l /tmp && exec /bin/sleep 1000"
    script = f"mount -t overlay -o {options} overlay {mounted} && cd {mounted} && {enter}"
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdin=subprocess.DEVNULL)
    site.undo.callback(process.wait)
    site.undo.callback(process.kill)
    until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", what="the process is in its rootfs")
    return {("process", f"processes of container {container}"), ("snapshot", str(top))}


def leak_chain(site: Site) -> Found:
    """As the bridge plugin makes it, and leaves it when the network namespace goes before its DEL."""
    container = new_id()
    name = f"CNI-{container[:24]}"
    rule = ("POSTROUTING", "-s", "10.250.0.9/32", "-m", "comment", "--comment", f'name: "e2e-leak" id: "{container}"', "-j", name)
    table = ("iptables", "--wait", "-t", "nat")
    run(*table, "-N", name)
    site.undo.callback(run, *table, "-X", name)
    run(*table, "-A", *rule)
    site.undo.callback(run, *table, "-D", *rule)
    return {("chain", f"chain {name} of iptables")}


def leak_files(site: Site) -> Found:
    """One of each directory that is left, and an address."""
    name = new_id()
    lease = Path("/var/lib/cni/networks/e2e-leak/10.250.0.9")
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.write_text(f"{name}\neth0")
    site.undo.callback(lease.parent.rmdir)
    site.undo.callback(lease.unlink)
    found = {("cni", "address 10.250.0.9 of network e2e-leak")}
    for kind, parent in {
        "work_dir": site.daemon.root / PLUGIN / "k8s.io",
        "layer_unpack": site.daemon.root / "snapshots/unpack",
        "ingest": site.daemon.root / "content/ingest",
        "sandbox_dir": site.daemon.state / "sandboxes",
        "fifo": site.daemon.state / "io",
    }.items():
        (parent / name).mkdir()
        site.undo.callback((parent / name).rmdir)
        found.add((kind, str(parent / name)))
    return found


def test_what_was_leaked_on_purpose_is_found_beside_a_pod_that_is_not(site: Site) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(site.daemon.client.exec_sync, site.container, "sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done")
        try:
            until(lambda: [entry for entry in site.daemon.client.ledger() if entry.kind == "exec"], what="a command runs")
            assert audit(site.daemon) == (CLEAN, set())
            assert not running.done()
        finally:
            site.daemon.client.exec_sync(site.container, "touch", "/tmp/go")
        running.result()
    leaks = (leak_shim, leak_mount, leak_netns, leak_stale_pin, leak_init, leak_process, leak_chain, leak_files)
    expected = {found for leak in leaks for found in leak(site)}
    assert audit(site.daemon) == (LEAKS, expected)
    site.undo.close()
    [(kind, socket)] = audit(site.daemon)[1]  # all that a shim leaves that was killed
    assert kind == "socket"
    Path(socket).unlink()
    audit_until_clean(site.daemon)


@one_pair
def test_what_was_leaked_on_purpose_is_released_beside_a_pod_that_lives_on(site: Site) -> None:
    leaks = (leak_shim, leak_mount, leak_netns, leak_stale_pin, leak_init, leak_process, leak_chain, leak_files)
    expected = {found for leak in leaks for found in leak(site)}
    assert audit(site.daemon) == (LEAKS, expected)
    done = site.daemon.orlop("--output", "json", "reap", "--yes", check=False)
    steps = json.loads(done.stdout)
    assert (done.returncode, {step["outcome"] for step in steps} - {"released", "gone"}) == (CLEAN, set()), done.stdout
    assert {step["kind"] for step in steps} == {kind for kind, _ in expected}
    assert audit(site.daemon) == (CLEAN, set())
    assert site.daemon.client.exec_sync(site.container, "echo", "alive").stdout == b"alive\n"
    with suppress(OSError, AssertionError):  # each says so that finds nothing to undo
        site.undo.close()


@one_pair
def test_a_node_where_pods_come_and_go_is_clean(site: Site) -> None:
    client, done = site.daemon.client, Event()

    def churn() -> None:
        while not done.is_set():
            pod = client.run_pod()
            client.exec_sync(client.run_container(pod), "true")
            client.stop_pod(pod)
            client.remove_pod(pod)

    with ThreadPoolExecutor() as threads:
        churning = [threads.submit(churn) for _ in range(2)]
        try:
            assert [audit(site.daemon) for _ in range(8)] == [(CLEAN, set())] * 8
        finally:
            done.set()
        for churned in churning:
            churned.result()


@one_pair
def test_with_the_daemon_down_its_files_are_read(site: Site) -> None:
    site.daemon.stop()
    assert audit(site.daemon) == (CLEAN, set())
    expected = leak_mount(site) | leak_netns(site)
    assert audit(site.daemon) == (LEAKS, expected)
    site.undo.close()
    [shim] = shims(site.pod.id)
    os.kill(shim.pid, signal.SIGKILL)
    code, missing = audit(site.daemon, "missing")
    assert (code, missing) == (LEAKS, {("shim", site.pod.id)})
    site.daemon.start()
    audit_until_clean(site.daemon)
