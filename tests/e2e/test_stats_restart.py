"""Statistics and events across the daemon's stops, and beside what a shim would say. Apart from the others, whose daemon runs on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from agent.linux.cgroups import Cgroups
from agent.stats import Cgroup, shim
from tests.e2e.client import Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import CGROUPS
from tests.e2e.tasks import furnished, running
from tests.e2e.test_events import STOPPED, listening
from tests.e2e.test_stats import BUSY, MIB, pod_stats, stats
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]


def test_a_restart_and_an_init_that_moved_change_nothing(daemon: Daemon) -> None:
    """An init that is systemd moves itself into a cgroup below. The container is what it was put into."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod, BUSY)
    until(lambda: stats(kubelet, container).cpu.usage_core_nano_seconds.value > 200_000_000, what="it has worked")
    pid = next(p for p in (CGROUPS / "memory" / path(pod, container) / "cgroup.procs").read_text().split())
    for controller in ("cpuacct", "memory", "pids"):
        below = CGROUPS / controller / path(pod, container) / "init.scope"
        below.mkdir()
        (below / "cgroup.procs").write_text(pid)
    before = stats(kubelet, container)
    daemon.restart()
    after = stats(kubelet, container)
    assert after.cpu.usage_core_nano_seconds.value >= before.cpu.usage_core_nano_seconds.value
    assert not after.cpu.HasField("usage_nano_cores"), "a rate over the daemon's absence would be made up"
    assert pod_stats(kubelet, pod).linux.cpu.usage_core_nano_seconds.value >= after.cpu.usage_core_nano_seconds.value


def path(pod: Pod, container: str) -> str:
    return f"{pod.config.linux.cgroup_parent.strip('/')}/{container}"


async def test_a_shim_would_say_the_same(tmp_path: Path, pair: Pair, node_is_clean: None) -> None:
    """Kata's and gVisor's answers are read by the same code as runc's."""
    with furnished(tmp_path / "root") as home:
        async with running(pair, home) as tasks:
            sandbox = await tasks.pinned()
            task = await tasks.run(sandbox, ["sh", "-c", "x=$(busybox head -c 10000000 /dev/zero | busybox tr '\\0' x); sleep 1000; true"])
            cgroups = Cgroups()
            cgroup = Cgroup.of_process(await cgroups.of_process(task.pid), await cgroups.controllers())
            while True:
                here = cgroup.read()
                assert here is not None
                assert here.memory is not None
                if here.memory.rss > 10_000_000 and here.tasks == 2:
                    break
                await asyncio.sleep(0.05)
            there = shim.sample(await task.stats())
            assert there.memory is not None
            assert here.cpu is not None
            assert there.cpu is not None
            assert there.cpu >= here.cpu
            assert there.memory.rss == pytest.approx(here.memory.rss, abs=2 * MIB)
            assert there.memory.working_set == pytest.approx(here.memory.working_set, abs=2 * MIB)
            assert there.memory.page_faults >= here.memory.page_faults
            assert there.tasks == here.tasks
            assert await tasks.release(sandbox=sandbox) == []


def test_nothing_is_told_of_what_was_before(daemon: Daemon) -> None:
    kubelet = daemon.client
    pod = kubelet.run_pod()
    daemon.restart()
    with listening(kubelet) as stream:
        kubelet.stop_pod(pod)
        assert next(stream).container_event_type == STOPPED


def test_a_listener_doesnt_keep_the_daemon_from_stopping(daemon: Daemon) -> None:
    with listening(daemon.client) as stream:
        started = time.monotonic()
        daemon.stop()
        assert time.monotonic() - started < 5
        with pytest.raises(StopIteration):
            next(stream)
        assert stream.code() is grpc.StatusCode.OK
    daemon.start()


def test_a_listener_that_leaves_is_forgotten(daemon: Daemon) -> None:
    kubelet = daemon.client
    with listening(kubelet):
        pass
    pod = kubelet.run_pod()
    with listening(kubelet) as stream:
        kubelet.stop_pod(pod)
        assert next(stream).container_id == pod.id
    assert "CANCELLED" not in daemon.log_tail(), "that is no failure"
