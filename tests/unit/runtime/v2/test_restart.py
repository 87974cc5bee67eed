"""The task manager on simulated shims: a shim dies, hangs or drops us; the daemon dies; and what is found again after a restart."""

from __future__ import annotations

import asyncio

import pytest

from agent import failpoints, timeouts
from agent.errdefs import FailedPrecondition, NotFound
from agent.events import TaskDelete, TaskExit
from agent.linux.processes import Completed
from agent.runtime.v2.shim import ShimState
from agent.store.ledger import Intent, Kind
from tests.unit.runtime.v2.rig import RUNC, Rig, until

# ---- a shim dies


async def test_a_dead_shim_is_replaced(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    old = rig.node.shim("pod")
    old.die()
    assert (await task.wait()).reason == "Unknown"
    await until(lambda: rig.node.shims["/pod"] is not old and rig.manager._shims["pod"].state is ShimState.CONNECTED)
    assert rig.node.commands == ["start pod", "delete c1", "start pod"]
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    assert held.data["pid"] == rig.node.shim("pod").process.pid
    await rig.ledger.intend(Intent(Kind.TASK, "c2", "pod", "c2"))
    await rig.create("c2")
    await rig.release()


async def test_a_create_after_a_death_that_nobody_noticed_yet(rig: Rig) -> None:
    await rig.pinned()
    await rig.create("c1")
    rig.node.shim("pod").die()
    task = await rig.create("c2")
    assert task.shim is rig.manager._shims["pod"]
    assert rig.node.commands == ["start pod", "delete c1", "start pod"]
    await rig.release()


async def test_a_shim_dies_under_a_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    rig.node.shim("pod").die()
    with pytest.raises(Exception, match=r"lost|closed|gone"):
        await creating
    del rig.node.hang["Create"]
    assert rig.node.commands.count("delete c1") == 1
    assert rig.ledger.get(Kind.TASK, "c1") is None
    assert rig.manager.tasks() == []
    await rig.create("c1")
    await rig.release()


async def test_a_replacement_that_fails_is_tried_again_by_the_next_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.start_says = Completed(1, b"", b"not now")
    rig.node.shim("pod").die()
    await until(lambda: rig.node.commands.count("start pod") == 2)
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CLEANED)
    await rig.create()
    assert rig.node.commands.count("start pod") == 3
    await rig.release()


async def test_no_replacement_for_a_sandbox_that_is_being_stopped(rig: Rig) -> None:
    await rig.pinned()
    rig.manager._gate("pod").close()
    rig.node.shim("pod").die()
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CLEANED)
    await rig.release()
    assert rig.node.commands == ["start pod"]


@pytest.mark.field_fault("23")
async def test_kill_shim(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    old = rig.node.shim("pod")
    await rig.manager.kill_shim("pod")
    assert not old.process.alive()
    exit_ = await task.wait()
    assert "was killed" in exit_.message
    with pytest.raises(NotFound):
        rig.manager.get("c1")
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CONNECTED)
    await rig.release()


async def test_a_shim_that_drops_us_is_redialled(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.shim("pod").hang_up()
    await until(lambda: rig.node.calls.count("Wait c1") == 2)
    rig.node.shim("pod").containers["c1"].stop(4)
    assert (await task.wait()).status == 4
    assert rig.node.commands == ["start pod"]
    await rig.release()


async def test_a_shim_that_drops_us_for_good_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.01)
    await rig.pinned()
    task = await rig.create()
    shim = rig.node.shim("pod")
    shim.deaf = True
    shim.hang_up()
    exit_ = await task.wait()
    assert "could not be reached" in exit_.message
    assert not shim.process.alive()
    await rig.release()


# ---- restart


async def test_a_restart(rig: Rig) -> None:
    await rig.pinned()
    await (await rig.create("runs")).start()
    await (await rig.create("ends")).start()
    shim = rig.node.shim("pod")
    shim.containers["ends"].stop(3)
    await rig.restart()
    assert rig.node.commands == []
    ends, runs = rig.manager.get("ends"), rig.manager.get("runs")
    assert (await ends.wait()).status == 3
    assert runs.exited is None
    assert runs.pid == shim.containers["runs"].process.pid
    await rig.create("c3")
    await rig.release()
    assert {event.container_id for event in rig.events if isinstance(event, TaskDelete)} == {"runs", "ends", "c3"}


async def test_the_shim_died_meanwhile(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    rig.node.shim("pod").process.ended.set()
    await rig.restart()
    exits = [event.exit for event in rig.events if isinstance(event, TaskExit)]
    assert [(exit_.status, exit_.reason) for exit_ in exits] == [(255, "Unknown")]
    assert "while the agent was away" in exits[0].message
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CONNECTED)
    assert rig.node.commands == ["delete c1", "start pod"]
    await rig.release()


@pytest.mark.field_fault("0b", "6")
async def test_a_mute_shim_delays_the_start_by_its_budget_and_keeps_its_containers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    await rig.create()
    shim = rig.node.shim("pod")
    shim.mute = True
    monkeypatch.setattr(timeouts, "SHIM_LOAD", 0.02)
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.0)
    await rig.restart()
    task = rig.manager.get("c1")
    assert task.exited is None
    assert task.shim.state is ShimState.LOST
    await until(lambda: rig.node.calls.count("Connect pod") > 3)
    assert shim.process.alive(), "a timeout isn't death"
    shim.mute = False
    await task.shim.wait_connected()
    shim.containers["c1"].stop(5)
    assert (await task.wait()).status == 5
    await rig.release()


async def test_a_task_that_its_shim_does_not_know(rig: Rig) -> None:
    """The previous daemon died between Delete and the rest."""
    await rig.pinned()
    await rig.create()
    rig.node.shim("pod").containers.pop("c1").stop(3)
    await rig.restart()
    exit_ = await rig.manager.get("c1").wait()
    assert (exit_.status, exit_.reason) == (255, "Unknown")
    await rig.release()


@pytest.mark.field_fault("9", "23")
async def test_a_task_that_its_shim_does_not_know_and_that_runs(rig: Rig) -> None:
    """Its own shim died and could not be cleaned up after: the process did not end. The successor has never heard of it."""
    await rig.pinned()
    await rig.create()
    container = rig.node.shim("pod").containers.pop("c1")
    await rig.restart()
    task = rig.manager.get("c1")
    assert task.exited is None
    container.process.ended.set()
    assert (await task.wait()).reason == "Unknown"
    await rig.release()


async def test_a_daemon_that_dies_in_the_middle_of_a_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await creating
    del rig.node.hang["Create"]
    await rig.restart()
    assert rig.manager.get("c1").exited is None
    await rig.release()
    assert "delete c1" in rig.node.commands
    assert rig.told("c1") == []


async def test_a_daemon_that_dies_right_after_create(rig: Rig) -> None:
    """The pid never got into the ledger; the shim tells it."""
    await rig.pinned()
    failpoints.configure("runtime.task.hold=hang")
    creating = asyncio.ensure_future(rig.create())
    await until(lambda: "Wait c1" in rig.node.calls)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await creating
    failpoints.configure("")
    await rig.restart()
    task = rig.manager.get("c1")
    assert task.pid == rig.node.shim("pod").containers["c1"].process.pid
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert held.data["pid"] == task.pid
    await rig.release()
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]


async def test_a_daemon_that_dies_before_anything_was_made(rig: Rig) -> None:
    await rig.pinned()
    await rig.ledger.intend(Intent(Kind.TASK, "c1", "pod", "c1", {"handler": "runc"}))
    await rig.restart()
    await rig.release()
    assert "delete c1" not in rig.node.commands


async def test_a_daemon_that_dies_while_a_shim_starts(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod", data={"handler": "runc"}))
    failpoints.configure("runtime.shim.start=hang")
    starting = asyncio.ensure_future(rig.manager.start_shim("pod", RUNC, {}))
    await until((rig.bundle("pod") / "log").exists)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await starting
    failpoints.configure("")
    await rig.restart()
    await rig.release()


async def test_a_sandbox_task_whose_start_was_cut_off(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod"), Intent(Kind.TASK, "pod", "pod"))
    failpoints.configure("runtime.shim.start=hang")
    starting = asyncio.ensure_future(rig.create("pod"))
    await until((rig.bundle("pod") / "log").exists)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await starting
    failpoints.configure("")
    await rig.restart()
    await rig.release()


async def test_a_stop_that_had_begun_lets_nothing_in_after_a_restart(rig: Rig) -> None:
    await rig.pinned()
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    rig.ledger.releasing([held])
    await rig.restart()
    with pytest.raises(FailedPrecondition):
        await rig.create()
    await rig.ledger.drop(Kind.TASK, "c1")
    await rig.release()


async def test_leftovers_of_a_removal_and_of_another_boot(rig: Rig) -> None:
    work_dirs = rig.tmp / "lib/io.containerd.runtime.v2.task/k8s.io"
    (rig.bundle(".c9")).mkdir(parents=True)
    (work_dirs / "of-another-boot").mkdir(parents=True)
    await rig.pinned()
    await rig.restart()
    await rig.manager.remove_work_dirs(await rig.manager.orphaned_work_dirs())
    assert not rig.bundle(".c9").exists()
    assert [path.name for path in work_dirs.iterdir()] == ["pod"]
    await rig.release()


async def test_stop_lets_go_and_leaves_all_running(rig: Rig) -> None:
    await rig.manager.start()
    await rig.pinned()
    await rig.create()
    async with asyncio.timeout(1):
        await rig.manager.stop(5)
    assert rig.node.shim("pod").process.alive()
    assert rig.node.shim("pod").containers["c1"].process.alive()
    await rig.restart()
    await rig.release()
