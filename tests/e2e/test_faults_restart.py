"""A daemon that is gone for a while, in order or not: what runs goes on, what ended meanwhile is told right, no line is lost."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.client import until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.faults import Rig, init_of, release
from tests.e2e.node import shims
from tests.e2e.toolbox import REPO

pytestmark = pytest.mark.e2e

FLOOD = "i=0; until [ -e /tmp/stop ]; do echo $i; i=$((i+1)); done"
"""A counter that never pauses: some ten thousand lines a second."""


@pytest.mark.field_fault("31")
@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9], ids=["in order", "killed"])
def test_the_daemon_is_away(rig: Rig, end: Callable[[Daemon], None]) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory())
    runs = kubelet.run_container(pod, ["sh", "-c", "echo begun; sleep 1000000"])
    counts = kubelet.run_container(pod, ["sh", "-c", FLOOD])
    ends = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; seq 1000; exit 7"])
    ended = kubelet.run_container(pod, ["sh", "-c", "echo over; exit 3"])
    kubelet.wait_exit(ended)
    created = kubelet.create_container(pod, ["sh", "-c", "echo late; sleep 1000000"])
    until(lambda: Path(kubelet.status(counts).log_path).stat().st_size, what="the counter counts")
    untouched = (runs, ended, created)
    before = {container: kubelet.status(container) for container in untouched}
    pod_before, shim, init = kubelet.pod_status(pod), shims(pod.id)[0].pid, init_of(runs)

    end(rig.daemon)
    release(ends)
    until(lambda: init_of(ends) == [], what="it has ended while nobody looked")
    rig.daemon.start()

    assert {container: kubelet.status(container) for container in untouched} == before
    assert (kubelet.pod_status(pod), shims(pod.id)[0].pid, init_of(runs)) == (pod_before, shim, init)
    status = kubelet.wait_exit(ends)
    assert (status.exit_code, status.reason) == (7, "Error")
    assert before[runs].started_at < status.started_at < status.finished_at
    until(lambda: len(kubelet.logs(ends)) >= 1000, what="its last lines are there")
    assert [line.text for line in kubelet.logs(ends)] == [str(number) for number in range(1, 1001)]
    assert [line.text for line in kubelet.logs(ended)] == ["over"]
    assert kubelet.exec_sync(runs, "echo", "on").stdout == b"on\n"

    kubelet.start(created)
    until(lambda: [line.text for line in kubelet.logs(created)] == ["late"], what="what was created before can be started")
    log = Path(kubelet.status(counts).log_path)
    so_far = log.stat().st_size
    until(lambda: log.stat().st_size > so_far, what="the counter goes on")
    kubelet.exec_sync(counts, "touch", "/tmp/stop")
    kubelet.wait_exit(counts)
    numbers = [line.split()[3] for line in log.read_text().splitlines()]
    assert numbers == [str(number) for number in range(len(numbers))]


@one_pair
def test_a_second_daemon_is_refused(rig: Rig) -> None:
    """It touches nothing: the first one serves on, from the same socket."""
    second = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "serve", "--config", rig.daemon.config],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 1
    assert str(rig.daemon.state) in second.stderr
    assert "another orlop daemon" in second.stderr
    assert "Traceback" not in second.stderr
    assert rig.kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n"


@pytest.mark.field_fault("24")
@one_pair
@pytest.mark.parametrize("torn", ["container", "sandbox"])
def test_a_torn_record(rig: Rig, torn: str) -> None:
    """It costs what it told of, never the start, and nothing is left of that either (field-faults 24)."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    rig.daemon.kill9()
    damage(rig.daemon.state / "boot.db", pod.id if torn == "sandbox" else container)
    begin = rig.daemon.log.stat().st_size
    rig.daemon.start()
    rig.daemon.wait_recovered()
    assert "set aside" in " ".join(event["event"] for event in rig.events(begin))
    if torn == "container":
        assert container not in [other.id for other in kubelet.containers()]
        until(lambda: init_of(container) == [], what="it doesn't run any more")
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
    else:
        assert pod.id not in [other.id for other in kubelet.pods()]
    assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n"


def damage(database: Path, key: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        done = connection.execute("UPDATE records SET data = substr(data, 1, length(data) / 2) WHERE key = ?", (key,))
        assert done.rowcount == 1
