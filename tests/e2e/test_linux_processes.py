"""Processes of the real kernel: reused numbers, cgroups entered before the first instruction, children that can't be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errdefs import DeadlineExceeded
from agent.linux import files
from agent.linux import processes as module
from agent.linux.cgroups import Cgroups
from agent.linux.processes import Command, Processes
from tests.e2e.node import CGROUP_PARENT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]

ENV = {"PATH": os.environ["PATH"]}
CGROUP = f"{CGROUP_PARENT}/processes"


@pytest.fixture
async def cgroups() -> AsyncIterator[Cgroups]:
    cgroups = Cgroups()
    await cgroups.create(CGROUP)
    yield cgroups
    await cgroups.kill(CGROUP, 5)
    await cgroups.remove(CGROUP)


def child_with_number(pid: int) -> subprocess.Popen[bytes]:
    """A process with this number, in our own PID namespace (tests/e2e/enter), where we alone start processes."""
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = subprocess.Popen(["sleep", "1000"])
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    raise AssertionError(f"number {pid} doesn't come again")


def ended(child: subprocess.Popen[bytes]) -> int:
    child.kill()
    return child.wait()


async def test_a_reused_number_is_another_process() -> None:
    processes = Processes()
    first = child_with_number(20_000)
    held = await processes.open(first.pid)
    assert held is not None
    with held:
        ended(first)
        await asyncio.sleep(0.02)  # two clock ticks, by which start times are told apart
        second = child_with_number(first.pid)
        try:
            assert await processes.open(first.pid, held.identity.start_time) is None
            held.kill(signal.SIGKILL)  # to the process that is gone, not to its number
            await held.wait()
            again = await processes.open(first.pid)
            assert again is not None
            with again:
                assert again.alive()
                assert again.identity != held.identity
        finally:
            assert ended(second) == -signal.SIGKILL


async def test_a_process_that_is_no_child_is_waited_for() -> None:
    processes = Processes()
    done = await processes.run(Command(("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"), Path("/"), ENV))
    orphan = await processes.open(int(done.stdout))
    assert orphan is not None
    with orphan:
        waiter = asyncio.create_task(orphan.wait())
        assert not (await asyncio.wait([waiter], timeout=0.02))[0]
        orphan.kill(signal.SIGTERM)
        await asyncio.wait_for(waiter, 5)
        assert not orphan.alive()


async def test_a_child_is_in_its_cgroup_in_every_hierarchy_from_the_start(cgroups: Cgroups) -> None:
    done = await Processes().run(Command(("cat", "/proc/self/cgroup"), Path("/"), ENV, cgroup=CGROUP))
    places = dict(line.split(":", 2)[1:] for line in done.stdout.decode().splitlines())
    del places[""]  # the v2 mount of this machine is out of sight here (tests/e2e/enter)
    assert len(places) > 5
    assert set(places.values()) == {CGROUP}


async def test_a_started_child_lives_in_its_cgroup_without_input(cgroups: Cgroups) -> None:
    processes = Processes()
    with await processes.start(Command(("sh", "-c", "cat; exec sleep 1000"), Path("/"), ENV, cgroup=CGROUP)) as process:
        assert await cgroups.processes(CGROUP) >= {process.pid}
        while (await processes.run(Command(("cat", f"/proc/{process.pid}/comm"), Path("/"), ENV))).stdout != b"sleep\n":
            await asyncio.sleep(0.01)
        await cgroups.kill(CGROUP, 5)
        await asyncio.wait_for(process.wait(), 5)
    await processes.stop()


async def test_a_child_that_sigkill_does_not_end_is_reaped_later(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen here; a dead NFS server does the same."""
    monkeypatch.setattr(module, "KILL_GRACE", 0.1)
    processes = Processes()
    state = f"/sys/fs/cgroup/freezer{CGROUP}/freezer.state"
    task = asyncio.create_task(processes.run(Command(("sleep", "1000"), Path("/"), ENV, budget=1, cgroup=CGROUP)))
    while not (pids := await cgroups.processes(CGROUP)):
        await asyncio.sleep(0.01)
    files.write(state, "FROZEN")
    with pytest.raises(DeadlineExceeded, match=r"sleep 1000 took longer than 1 s"):
        await task
    assert await cgroups.processes(CGROUP) == pids
    files.write(state, "THAWED")
    while await cgroups.processes(CGROUP) or processes._supervisor._tasks:
        await asyncio.sleep(0.01)
    assert not pids & {row.pid for row in await processes.table()}
