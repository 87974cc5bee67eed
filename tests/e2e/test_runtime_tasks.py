"""Containers in real shims, through the task manager alone: their life, and each way in which it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errdefs import Busy, OrlopError
from agent.events import TaskExit
from agent.store.kinds import Kind
from tests.e2e.node import Process, processes, runc_inits
from tests.e2e.tasks import STATE, furnished, running
from tests.e2e.toolbox import Pair

pytestmark = pytest.mark.e2e

MISSING = str(STATE / "no-such-fifo")


@pytest.fixture
def home(tmp_path: Path, node_is_clean: None) -> Iterator[Path]:
    with furnished(tmp_path / "root") as root:
        yield root


def alive(pid: int) -> bool:
    return any(process.pid == pid for process in processes())


@contextmanager
def holding(directory: Path) -> Iterator[int]:
    """A process of the host that works in `directory`; its pid."""
    holder = subprocess.Popen(["sleep", "1000"], cwd=directory)
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


async def test_a_life_in_order(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox, ["sh", "-c", "exit 7"])
        exit_ = await task.wait()
        assert (exit_.status, exit_.reason) == (7, "")
        assert await tasks.release(Kind.TASK, container=task.id) == []
        await tasks.until_told(task)
        assert tasks.told(task) == ["TaskExit", "TaskDelete"]
        shim = tasks.shim(sandbox)
        other = await tasks.run(sandbox)
        assert tasks.shim(sandbox) == shim, "a pinned shim outlives its last container"
        await other.kill(signal.SIGTERM)
        assert await tasks.release(sandbox=sandbox) == []
        assert tasks.store.ledger.all() == []


async def test_a_sandbox_as_task(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.run("pod-1", task_id="pod-1")
        task = await tasks.run("pod-1")
        shim = tasks.shim("pod-1")
        results = await asyncio.gather(*(tasks.manager.delete(task.id) for _ in range(3)))
        assert results == [None] * 3
        assert tasks.shim("pod-1") == shim
        assert sandbox.exited is None
        assert await tasks.release(sandbox="pod-1") == []
        assert tasks.shims("pod-1") == []
        assert tasks.store.ledger.all() == []


async def test_a_created_container_is_deleted(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.create(sandbox)
        assert await tasks.release(sandbox=sandbox) == []
        assert (await task.wait()).status == 128 + signal.SIGKILL
        assert tasks.told(task) == ["TaskExit", "TaskDelete"]


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_a_create_fails_through_a_missing_fifo(pair: Pair, home: Path, first: bool) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        other = None if first else await tasks.run(sandbox)
        with pytest.raises(OrlopError, match="no-such-fifo"):
            await tasks.create(sandbox, stdout=MISSING, stderr=MISSING)
        assert runc_inits() == []
        assert [resource.kind for resource in tasks.store.ledger.all()] == [Kind.SHIM] + [Kind.TASK] * (not first)
        again = await tasks.run(sandbox, ["true"])
        assert (await again.wait()).status == 0
        assert other is None or other.exited is None
        assert await tasks.release(sandbox=sandbox) == []


async def test_the_first_create_of_a_sandbox_task_fails(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        with pytest.raises(OrlopError, match="no-such-fifo"):
            await tasks.create("pod-1", task_id="pod-1", stdout=MISSING, stderr=MISSING)
        assert tasks.shims("pod-1") == []
        assert await tasks.release(sandbox="pod-1") == []


async def test_a_pods_shim_is_killed(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        containers = [await tasks.run(sandbox) for _ in range(2)]
        shim = tasks.shim(sandbox)
        os.kill(shim.pid, signal.SIGKILL)
        await tasks.until_told(*containers)
        for task in containers:
            exit_ = await task.wait()
            assert (exit_.status, exit_.reason) == (255, "Unknown")
            assert str(shim.pid) in exit_.message
            assert tasks.told(task) == ["TaskExit", "TaskDelete"]
            assert not alive(task.pid)
        await tasks.until_replaced(sandbox, shim)
        task = await tasks.run(sandbox, ["true"])
        assert (await task.wait()).status == 0
        assert await tasks.release(sandbox=sandbox) == []


async def test_a_create_right_after_the_shim_is_killed(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        await tasks.run(sandbox)
        os.kill(tasks.shim(sandbox).pid, signal.SIGKILL)
        await asyncio.sleep(0.02)
        task = await tasks.run(sandbox, ["true"])
        assert (await task.wait()).status == 0
        assert await tasks.release(sandbox=sandbox) == []


async def test_the_shim_of_a_sandbox_task_is_killed(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.run("pod-1", task_id="pod-1")
        task = await tasks.run("pod-1")
        os.kill(tasks.shim("pod-1").pid, signal.SIGKILL)
        await tasks.until_told(sandbox, task)
        deleted = [event.container_id for event in tasks.events if not isinstance(event, TaskExit)]
        assert deleted == [task.id, sandbox.id]
        assert tasks.shims("pod-1") == []
        assert await tasks.release(sandbox="pod-1") == []


@pytest.mark.parametrize("shim_dies", [True, False], ids=["dead shim", "in order"])
async def test_a_busy_rootfs(pair: Pair, home: Path, shim_dies: bool) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        with holding(task.bundle.rootfs) as holder:
            if shim_dies:
                os.kill(tasks.shim(sandbox).pid, signal.SIGKILL)
                await tasks.until_told(task, event="TaskExit")
            [(_, error)] = await tasks.release(Kind.TASK, container=task.id)
            assert isinstance(error, Busy)
            assert f"process {holder} (sleep" in str(error)
            assert task.bundle.path.is_dir()
            assert tasks.told(task) == ["TaskExit"]
        assert await tasks.release(Kind.TASK, container=task.id) == []
        assert tasks.told(task) == ["TaskExit", "TaskDelete"]
        assert await tasks.release(sandbox=sandbox) == []


async def test_a_busy_rootfs_does_not_keep_the_shim(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        with holding(task.bundle.rootfs):
            [(resource, _)] = await tasks.release(sandbox=sandbox)
            assert (resource.kind, resource.key) == (Kind.TASK, task.id)
            assert tasks.shims(sandbox) == []
        assert await tasks.release(sandbox=sandbox) == []


async def test_a_restart_finds_what_runs_and_what_ended(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        runs, created = await tasks.run(sandbox), await tasks.create(sandbox)
        ends = await tasks.run(sandbox, ["sh", "-c", "sleep 0.5; exit 3"])
        shim = tasks.shim(sandbox)
    await asyncio.sleep(1)
    async with running(pair, home) as tasks:
        assert tasks.shim(sandbox) == shim
        assert (await tasks.manager.get(ends.id).wait()).status == 3
        assert tasks.manager.get(runs.id).exited is None
        assert tasks.manager.get(runs.id).pid == runs.pid
        command = {"args": ["sh", "-c", "exit 5"], "cwd": "/", "env": ["PATH=/bin"]}
        process = await tasks.manager.get(runs.id).exec("e1", command, "", "", "")
        await process.start()
        assert (await process.wait()).status == 5
        await process.delete()
        await tasks.manager.get(created.id).start()
        assert await tasks.release(sandbox=sandbox) == []


async def test_the_shim_dies_while_the_agent_is_away(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        shim = tasks.shim(sandbox)
    os.kill(shim.pid, signal.SIGKILL)
    async with running(pair, home) as tasks:
        await tasks.until_told(task)
        await tasks.until_replaced(sandbox, shim)
        assert (await (await tasks.run(sandbox, ["true"])).wait()).status == 0
        assert await tasks.release(sandbox=sandbox) == []


async def test_a_mute_shim_keeps_its_containers(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        shim = tasks.shim(sandbox)
    os.kill(shim.pid, signal.SIGSTOP)
    async with asyncio.timeout(12), running(pair, home) as tasks:
        assert tasks.manager.get(task.id).exited is None
        os.kill(shim.pid, signal.SIGCONT)
        again = tasks.manager.get(task.id)
        await again.shim.wait_connected()
        assert tasks.shim(sandbox) == shim
        await again.kill(signal.SIGKILL)
        assert (await again.wait()).status == 137
        assert await tasks.release(sandbox=sandbox) == []


async def test_a_stopped_shim_is_killed_on_demand(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        os.kill(tasks.shim(sandbox).pid, signal.SIGSTOP)
        await tasks.manager.kill_shim(sandbox)
        assert (await task.wait()).reason == "Unknown"
        assert await tasks.release(sandbox=sandbox) == []


@pytest.mark.parametrize("victim", ["shim", "engine"])
async def test_a_kill_in_the_middle_of_a_create(pair: Pair, home: Path, victim: str) -> None:
    """Whatever point it comes at, nothing is left of the create, and the pod takes the next one."""
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        for milliseconds in range(0, 60, 5):
            creating = asyncio.ensure_future(tasks.create(sandbox))
            await asyncio.sleep(milliseconds / 1000)
            victims = tasks.shims(sandbox) if victim == "shim" else engines(pair)
            for process in victims:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            with suppress(OrlopError):
                await creating
            assert await tasks.release(Kind.TASK, sandbox=sandbox) == []
            assert tasks.left_of_containers(sandbox) == []
        task = await tasks.run(sandbox, ["true"])
        assert (await task.wait()).status == 0
        assert await tasks.release(sandbox=sandbox) == []


async def test_an_engine_that_lies(pair: Pair, home: Path) -> None:
    """Its delete says that all is well and does nothing; so does the shim's, with rc 0."""
    engine = home / "engine"
    engine.write_text(f'#!/bin/sh\ncase " $* " in *" delete "*) exit 0;; esac\nexec {pair.engine_path} "$@"\n')
    engine.chmod(0o755)
    async with running(pair, home, engine) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        created = await tasks.create(sandbox)
        os.kill(tasks.shim(sandbox).pid, signal.SIGKILL)
        await tasks.until_told(task, created)
        assert not alive(task.pid)
        assert not alive(created.pid)
        assert tasks.left_of_containers(sandbox) == []
        again = await tasks.run(sandbox)
        assert await tasks.release(Kind.TASK, container=again.id) == []
        assert await tasks.release(sandbox=sandbox) == []


async def test_the_agent_goes_in_the_middle_of_a_create(pair: Pair, home: Path) -> None:
    """Its connection ends and with it the shim's call; the next incarnation takes down what is left of it."""
    engine = home / "engine"
    engine.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) sleep 1;; esac\nexec {pair.engine_path} "$@"\n')
    engine.chmod(0o755)
    async with running(pair, home, engine) as tasks:
        sandbox = await tasks.pinned()
        creating = asyncio.ensure_future(tasks.create(sandbox))
        while not engines(pair, engine):
            await asyncio.sleep(0.01)
        creating.cancel()
        await tasks.manager.stop(0)
    async with running(pair, home) as tasks:
        assert await tasks.release(Kind.TASK, sandbox=sandbox) == []
        assert (await (await tasks.run(sandbox, ["true"])).wait()).status == 0
        assert await tasks.release(sandbox=sandbox) == []


async def test_an_upgrade_takes_the_shims_binary_away(pair: Pair, home: Path) -> None:
    async with running(pair, home) as tasks:
        sandbox = await tasks.pinned()
        task = await tasks.run(sandbox)
        task.record = replace(task.record, binary="/upgraded/away")
        os.kill(tasks.shim(sandbox).pid, signal.SIGKILL)
        await tasks.until_told(task)
        assert await tasks.release(sandbox=sandbox) == []


def engines(pair: Pair, wrapper: Path | None = None) -> list[Process]:
    """The engine's processes that create, and not the container's."""
    names = {str(pair.engine_path), str(wrapper)}
    return [process for process in processes() if names & set(process.argv[:3]) and "create" in process.argv]
