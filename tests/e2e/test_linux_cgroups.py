"""Cgroups of the real kernel, in the three forms a node can have: v1, v2, and both side by side."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.errdefs import Busy, DeadlineExceeded
from agent.linux import cgroupfs, files
from agent.linux.cgroups import Cgroups
from agent.linux.processes import Command, Process, Processes
from tests.e2e.node import CGROUP_PARENT, CGROUPS

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]

ENV = {"PATH": os.environ["PATH"]}
NAME = f"{CGROUP_PARENT}/cgroups"


def mounted(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@pytest.fixture(params=["v1", "hybrid", "v2"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The place where such a node has its hierarchies. The mounts are the test's own; the cgroups behind them are the kernel's."""
    root = tmp_path_factory.mktemp("cgroup")
    match request.param:
        case "v2":
            mounted("-t", "cgroup2", "none", str(root))
        case _:
            mounted("-t", "tmpfs", "cgroup", str(root))
            for controller in CGROUPS.iterdir():
                (root / controller.name).mkdir()
                mounted("--bind", str(controller), str(root / controller.name))
            if request.param == "hybrid":
                (root / "unified").mkdir()
                mounted("-t", "cgroup2", "none", str(root / "unified"))
    assert Cgroups(root).mode == request.param
    yield root
    if request.param != "v1":  # made by create() in the v2 hierarchy, which tests/e2e/enter doesn't clean
        Path(f"{cgroupfs.hierarchies(root)[cgroupfs.UNIFIED]}{CGROUP_PARENT}").rmdir()
    subprocess.run(["umount", "--recursive", str(root)], check=True)


@pytest.fixture
async def processes(root: Path) -> AsyncIterator[Processes]:
    processes = Processes(cgroup_root=root)
    yield processes
    cgroups = Cgroups(root)
    await cgroups.kill(NAME, 10)
    await cgroups.remove(NAME)
    while any(row.ppid == os.getpid() for row in await processes.table()):  # killed, to be reaped
        await asyncio.sleep(0.01)
    await processes.stop()


BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
"""A program whose every process forks as often as it may: the place of one that is killed is taken at once."""
CHAIN = "import os\nwhile True:\n    if os.fork():\n        os._exit(0)"
"""The same without growing: each process leaves one other and ends."""


def directories(root: Path, cgroup: str) -> list[str]:
    return [directory for hierarchy in cgroupfs.hierarchies(root).values() if os.path.isdir(directory := f"{hierarchy}{cgroup}")]


async def started(processes: Processes, cgroup: str, *argv: str) -> Process:
    return await processes.start(Command(argv or ("sleep", "1000"), Path("/"), ENV, cgroup=cgroup))


async def test_kill_ends_the_whole_subtree_and_nobody_else(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    for name in (f"{NAME}/pod", f"{NAME}/pod/c1", f"{NAME}/pod/c1/nested", f"{NAME}/pod2"):
        await cgroups.create(name)
    inside = [await started(processes, f"{NAME}/pod{sub}", "sh", "-c", "sleep 1000 & sleep 1000") for sub in ("", "/c1", "/c1/nested")]
    bystander = await started(processes, f"{NAME}/pod2")
    with bystander:
        assert {process.pid for process in inside} <= await cgroups.processes(f"{NAME}/pod")
        with pytest.raises(DeadlineExceeded, match=rf"process {min(process.pid for process in inside)} \(sh, state S\)"):
            await cgroups.wait_empty(f"{NAME}/pod", 0.02)
        with pytest.raises(Busy, match=rf"in it process .*process {inside[-1].pid} "):
            await cgroups.remove(f"{NAME}/pod")
        assert await cgroups.exists(f"{NAME}/pod/c1/nested"), "all or nothing"

        await cgroups.kill(f"{NAME}/pod", 10)
        for process in inside:
            await asyncio.wait_for(process.wait(), 1)
            process.close()
        await cgroups.remove(f"{NAME}/pod")
        await cgroups.remove(f"{NAME}/pod")
        assert not await cgroups.exists(f"{NAME}/pod")
        assert bystander.alive()
        assert await cgroups.processes(f"{NAME}/pod2") == {bystander.pid}


@pytest.mark.field_fault("13")
async def test_frozen_processes_are_killed(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    await cgroups.create(f"{NAME}/frozen/inner")
    with await started(processes, f"{NAME}/frozen/inner") as process:
        for directory in directories(root, f"{NAME}/frozen/inner"):
            for control, text in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
                if control in os.listdir(directory):
                    files.write(f"{directory}/{control}", text)
        await cgroups.kill(f"{NAME}/frozen", 10)
        assert not process.alive()


async def test_a_fork_bomb_is_ended(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    await cgroups.create(f"{NAME}/bomb")
    limits = [directory for directory in directories(root, f"{NAME}/bomb") if "pids.max" in os.listdir(directory)]
    for directory in limits:  # v2 has no controllers beside those of v1, so it gets the tame one
        files.write(f"{directory}/pids.max", "40")
    with await started(processes, f"{NAME}/bomb", sys.executable, "-c", BOMB if limits else CHAIN) as first:
        while len(await cgroups.processes(f"{NAME}/bomb")) < 40 if limits else first.alive():
            await asyncio.sleep(0.01)
        await cgroups.kill(f"{NAME}/bomb", 10)
    await cgroups.remove(f"{NAME}/bomb")


async def test_a_cgroup_of_one_hierarchy_only_is_a_cgroup(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    await cgroups.create(NAME)
    os.mkdir(f"{directories(root, NAME)[0]}/alone")
    assert await cgroups.exists(f"{NAME}/alone")
    with await started(processes, f"{NAME}/alone") as process:
        assert await cgroups.processes(f"{NAME}/alone") == {process.pid}
        assert f"{NAME}/alone" in (await cgroups.of_process(process.pid)).values()
        await cgroups.kill(f"{NAME}/alone", 10)
    await cgroups.remove(f"{NAME}/alone")
    assert directories(root, f"{NAME}/alone") == []


async def test_a_process_that_ends_by_itself_empties_its_cgroup(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    await cgroups.create(f"{NAME}/short")
    with await started(processes, f"{NAME}/short") as process:
        waiter = asyncio.create_task(cgroups.wait_empty(f"{NAME}/short", 10))
        await asyncio.sleep(0.05)
        assert not waiter.done()
        process.kill(signal.SIGTERM)
        await waiter
    await cgroups.remove(f"{NAME}/short")


async def test_a_refused_move_names_the_file_and_leaves_no_child(root: Path, processes: Processes) -> None:
    cgroups = Cgroups(root)
    await cgroups.create(f"{NAME}/top/threads")
    if cgroups.mode == "v2":  # beside a threaded cgroup, another one takes nobody
        files.write(f"{root}{NAME}/top/threads/cgroup.type", "threaded")
        place = f"{root}{NAME}/top/refuses"
    else:  # a cpuset without CPUs
        place = f"{root}/cpuset{NAME}/top/refuses"
    os.mkdir(place)
    with pytest.raises(OSError, match="writing") as refused:
        await started(processes, f"{NAME}/top/refuses")
    assert (refused.value.errno, refused.value.filename) == (
        errno.EOPNOTSUPP if cgroups.mode == "v2" else errno.ENOSPC, f"{place}/cgroup.procs",
    )  # fmt: skip
    assert not [row for row in await processes.table() if row.ppid == os.getpid()]
