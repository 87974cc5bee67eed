"""A daemon that serves takes away what it leaked, by itself: what is its own and nothing else, and never what a call is just making."""

from __future__ import annotations

import os
import re
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from agent.identifiers import new_id
from cri.api import api_pb2 as cri
from tests.e2e.client import Client, until
from tests.e2e.conftest import DAEMON, clean_afterwards, one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.races import running
from tests.e2e.test_audit import (
    CLEAN,
    LEAKS,
    Found,
    Site,
    audit,
    leak_files,
    leak_init,
    leak_mount,
    leak_netns,
    leak_process,
    leak_shim,
    run,
)
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]

ADDRESS = "127.0.0.1:9748"


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path, pair: Pair, busybox: Path) -> Iterator[Daemon]:
    """One that audits all the time, and tells in metrics what it did."""
    daemon = Daemon(tmp_path, pair, settings=f'metrics_address = "{ADDRESS}"', timeouts="AUDIT_INTERVAL=0.3")
    request.node.stash[DAEMON] = daemon
    daemon.start()
    daemon.orlop("image", "import", busybox)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.client.remove_all()
        daemon.stop()
    daemon.client.close()


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    stack = ExitStack()
    yield stack
    with suppress(OSError, AssertionError):  # each says so that finds nothing to undo
        stack.close()


@pytest.fixture
def site(daemon: Daemon, undo: ExitStack, tmp_path: Path) -> Site:
    pod = daemon.client.run_pod()
    return Site(daemon, pod, daemon.client.run_container(pod), tmp_path, undo)


def counted(name: str) -> Counter[tuple[str, str]]:
    """By kind and owner."""
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as answer:
        rows = re.findall(rf'^{name}{{kind="(\w+)",owner="(\S+)"}} (\S+)$', answer.read().decode(), re.MULTILINE)
    return Counter({(kind, owner): int(float(value)) for kind, owner, value in rows if float(value)})


def audits() -> int:
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as answer:
        rows = re.findall(r'^orlop_audits_total\{result="\w+"\} (\S+)$', answer.read().decode(), re.MULTILINE)
    return sum(int(float(number)) for number in rows)


def audited(times: int) -> None:
    """Waits for so many whole audits."""
    begin = audits()
    until(lambda: audits() > begin + times, what=f"the daemon has made {times} audits")


def leak_what_was_a_pods(site: Site) -> Found:
    """Of a pod that is gone: its address, and the pin of its network namespace. They don't say whose they are; the journal does."""
    client = site.daemon.client
    pod = client.run_pod()
    [pin] = [Path(entry.key) for entry in client.ledger() if (entry.kind, entry.sandbox) == ("netns", pod.id)]
    client.stop_pod(pod)
    client.remove_pod(pod)
    run("unshare", f"--net={touched(pin)}", "true")
    lease = Path("/var/lib/cni/networks/e2e-own/10.250.1.9")
    lease.parent.mkdir(parents=True)
    site.undo.callback(lease.parent.rmdir)
    lease.write_text(f"{pod.id}\neth0")
    return {("netns", str(pin)), ("cni", "address 10.250.1.9 of network e2e-own")}


def leak_odd_mount(site: Site) -> Found:
    """With a name that the kernel escapes in its table, and that lines of a table can't hold."""
    odd = site.bundles / new_id() / "a\nb \\ #\t"
    odd.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "leak", odd)
    return {("mount", str(odd)), ("bundle", str(odd.parent))}


def touched(path: Path) -> Path:
    path.touch()
    return path


def test_what_is_leaked_goes_by_itself_and_what_may_be_others_stays(site: Site) -> None:
    """The fixtures find what is left, and that there is nothing else."""
    others = leak_netns(site)
    ours: Found = set()
    for plant in (leak_shim, leak_mount, leak_odd_mount, leak_init, leak_process, leak_what_was_a_pods, leak_files):
        ours |= plant(site)
    nobodys = ("cni", "address 10.250.0.9 of network e2e-leak")  # leased to a sandbox that was never ours
    ours.discard(nobodys)
    others.add(nobodys)
    # On a busy machine a bundle may be looked at while its mount is still going; then it is tried again a minute later.
    until(lambda: audit(site.daemon)[1] == others, what="what is ours is gone", within=120, detail=lambda: audit(site.daemon)[1] ^ others)
    reaped = counted("orlop_leaks_reaped_total")
    assert {owner for _, owner in reaped} == {"orlop"}
    # The init takes its cgroup along; what it leaves in the engine's directory, and the shim's socket, are each found or gone with it.
    assert {kind for kind, _ in reaped} >= {kind for kind, _ in ours} - {"cgroup", "engine_state"}
    audited(3)
    assert audit(site.daemon) == (LEAKS, others)
    assert site.daemon.client.exec_sync(site.container, "echo", "alive").stdout == b"alive\n"
    assert site.daemon.client.pod_status(site.pod).state == cri.SANDBOX_READY


def test_switched_off_it_only_tells(daemon: Daemon, undo: ExitStack, tmp_path: Path) -> None:
    daemon.stop()
    daemon.config.write_text(daemon.config.read_text() + "\n[leaks]\nreap = false\n")
    daemon.start()
    pod = daemon.client.run_pod()
    expected = leak_mount(Site(daemon, pod, "", tmp_path, undo))
    audited(3)
    assert audit(daemon) == (LEAKS, expected)
    assert counted("orlop_leaks_reaped_total") == Counter()


def pod(client: Client) -> Callable[[], object]:
    return client.run_pod


def start(client: Client) -> Callable[[], object]:
    container = client.create_container(client.run_pod())
    return lambda: client.start(container)


@pytest.mark.parametrize("prepare", [pod, start])
def test_what_a_call_is_just_making_is_no_leak(daemon: Daemon, prepare: Callable[[Client], Callable[[], object]]) -> None:
    """Held at each failpoint that it passes, all at once, while audits are made."""
    act = prepare(daemon.client)
    daemon.failpoints("none=error()")
    act()
    points = set(daemon.failpoints(""))
    assert len(points) > 5
    many = [prepare(daemon.client) for _ in points]
    begin = daemon.log.stat().st_size

    def not_reached() -> set[str]:
        return points - set(daemon.failpoints())

    daemon.failpoints(";".join(f"{point}=1*pause" for point in points))
    with ThreadPoolExecutor(len(many)) as threads:
        # Each gets as far as to a point at which none is held yet, and is the one that is held there.
        doing = [threads.submit(act) for act in many]
        try:
            until(lambda: not not_reached(), what="one is held at each", detail=not_reached)
            audited(3)
            held = sum(not each.done() for each in doing)
            assert held > len(points) / 2, "where a call does several things at once, it may be held at two"
        finally:
            daemon.failpoints("")
        for each in doing:
            each.result(60)
    said = daemon.log.read_bytes()[begin:].decode()
    assert [line for line in said.splitlines() if "reap: " in line or "audit: " in line] == []
    assert counted("orlop_leaks_found_total") == counted("orlop_leaks_reaped_total") == Counter()
    assert audit(daemon) == (CLEAN, set())


@pytest.mark.field_fault("24")
@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_what_runs_is_no_leak_because_the_ledger_has_lost_it(daemon: Daemon, tmp_path: Path, damage: str) -> None:
    """A ledger without it doesn't mean that nobody has it: not before somebody has looked. Files that are torn are set aside as well."""
    kubelet = daemon.client
    begun = kubelet.run_container(kubelet.run_pod(), ["sleep", "777777"])
    daemon.kill9()
    files = list(daemon.state.glob("boot.db*"))
    for path in files:
        shutil.copy(path, tmp_path)
        path.unlink() if damage == "removed" else os.truncate(path, 0)
    daemon.start()
    assert list(daemon.state.glob("boot.db.corrupt-*[0-9]")), "it is told"
    audited(3)
    assert counted("orlop_leaks_reaped_total") == Counter()
    assert len(running("sleep", "777777")) == 1
    daemon.kill9()
    for path in daemon.state.glob("boot.db*"):
        path.unlink()
    for path in files:
        shutil.copy(tmp_path / path.name, path)
    daemon.start()
    assert kubelet.exec_sync(begun, "echo", "on").stdout == b"on\n"
