"""The table of `cleanup`'s docstring, columns T, F and S: tasks deleted in order, creates that failed, shims that are shut down.

Taking a step out of `cleanup`, or swapping two, changes a journal here or in `test_cleanup`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.errdefs import Closed, DeadlineExceeded, FailedPrecondition, OrlopError, Unknown
from agent.events import Exit
from agent.runtime.v2 import steps
from agent.runtime.v2.cleanup import cleanup_after_dead_shim, cleanup_failed_create, delete_task, shutdown_shim
from agent.runtime.v2.records import TaskRecord
from agent.runtime.v2.shim import ShimState
from agent.runtime.v2.task import Stage
from agent.store.ledger import Kind
from agent.store.release import PartlyReleased
from tests.unit.runtime.v2.journal import (
    SHIM_IS_DEAD,
    SHIM_IS_GONE,
    Broken,
    deleted,
    fork,
    freed,
    nothing,
    several_turns,
    told,
)
from tests.unit.runtime.v2.world import LEAF, POD, World

# ---- T


async def test_delete(world: World) -> None:
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == ["Kill c1", "TaskExit c1 137", "Delete c1", "look c1", *freed("c1"), "TaskDelete c1"]
    assert world.shim.state is ShimState.CONNECTED
    assert list(world.shim.tasks) == ["c2"]
    world.journal.clear()
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == [], "a second time there is nothing to do"


async def test_delete_of_one_that_has_ended(world: World) -> None:
    world.tasks["c1"].finish(Exit(0, 5, 100))
    world.containers["c1"].runs = False
    world.journal.clear()
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == ["Delete c1", "look c1", *freed("c1"), "TaskDelete c1"]


async def test_delete_waits_for_the_exit_of_what_it_killed(world: World) -> None:
    """Created and killed, but Wait hasn't answered: Delete would make that for ever."""
    killed = asyncio.Event()
    world.containers["c1"].unkillable = True
    world.answers["Kill"] = killed.set
    deleting = asyncio.create_task(delete_task(world.node, world.tasks["c1"]))
    await killed.wait()
    await several_turns()
    assert "Delete c1" not in world.journal
    world.containers["c1"].unkillable = False
    world.tasks["c1"].finish(Exit(137, 5, 100))
    await deleting
    assert "Delete c1" in world.journal


async def test_delete_knows_the_exit_that_nobody_told(world: World) -> None:
    world.containers["c1"].runs = False
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal[:3] == ["Kill c1", "Delete c1", "TaskExit c1 137"]


@pytest.mark.field_fault("0c", "4")
async def test_delete_of_one_that_the_shim_does_not_know(world: World) -> None:
    world.containers["c1"].known_to_shim = False
    world.end(world.containers["c1"])
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == ["Kill c1", "Delete c1", "look c1", *freed("c1"), "TaskExit c1 255", "TaskDelete c1"]


@pytest.mark.field_fault("9", "23")
async def test_delete_of_one_that_the_shim_does_not_know_and_that_does_not_end(world: World) -> None:
    """The shim that knew it is dead, this is its successor. Nobody may be told an exit and start a second one beside it."""
    container = world.containers["c1"]
    container.known_to_shim, container.unkillable, container.shim_delete_does = False, True, nothing
    with pytest.raises(DeadlineExceeded):
        await delete_task(world.node, world.tasks["c1"])
    assert world.tasks["c1"].exited is None
    container.unkillable = False
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal[-2:] == told("c1")


async def test_what_delete_left_is_taken_down_by_shim_delete(world: World) -> None:
    world.containers["c1"].delete_does = fork
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == [
        *["Kill c1", "TaskExit c1 137", "Delete c1", "look c1"],
        *deleted("c1"),
        "TaskDelete c1",
    ]


async def test_delete_in_a_shim_that_is_not_pinned(task_world: World) -> None:
    """Shutdown after every Delete; the shim ends with its last task, and socket and cgroup go after that one."""
    await delete_task(task_world.node, task_world.tasks["c1"])
    assert task_world.journal == [
        *["Kill c1", "TaskExit c1 137", "Delete c1", f"Shutdown {POD}", "look c1"],
        *freed("c1"),
        "TaskDelete c1",
    ]
    task_world.journal.clear()
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.journal == [
        *["Kill pod", "TaskExit pod 137", "Delete pod", f"Shutdown {POD}", "shim exits", "shim has ended", *SHIM_IS_DEAD, "look pod"],
        *freed("pod"),
        *SHIM_IS_GONE,
        "TaskDelete pod",
    ]
    assert task_world.left() == []
    assert task_world.shim.state is ShimState.CLEANED


@pytest.mark.field_fault("0c", "5")
async def test_a_shim_that_does_not_end_with_its_last_task_is_killed(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.BUDGETS, "shutdown", 0.01)
    task_world.shim_ends_on_shutdown = False
    await delete_task(task_world.node, task_world.tasks["c1"])
    task_world.journal.clear()
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.journal[3:8] == [f"Shutdown {POD}", "shim gets signal 9", *SHIM_IS_DEAD, "look pod"]
    assert task_world.shim.state is ShimState.CLEANED


@pytest.mark.field_fault("4")
async def test_delete_that_timed_out_is_found_done(task_world: World) -> None:
    """field-faults 4: the shim finished after our budget; NotFound then still ends the shim."""
    await delete_task(task_world.node, task_world.tasks["c1"])

    def slow() -> None:
        task_world.end(task_world.containers["pod"])
        task_world.containers["pod"].known_to_shim = False
        raise DeadlineExceeded("no answer")

    task_world.answers["Delete"] = slow
    with pytest.raises(PartlyReleased, match="no answer"):
        await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.shim_runs
    assert task_world.tasks["pod"].stage is Stage.LIVE
    del task_world.answers["Delete"]
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.shim.state is ShimState.CLEANED
    assert task_world.left() == []


async def test_a_busy_rootfs_names_its_holder_and_lets_the_shim_go(world: World) -> None:
    world.containers["c1"].holder = True
    with pytest.raises(PartlyReleased, match=r"held by .*tail") as raised:
        await delete_task(world.node, world.tasks["c1"])
    assert raised.value.still_uses == {Kind.SNAPSHOT}
    assert world.journal == ["Kill c1", "TaskExit c1 137", "Delete c1", "look c1"]
    assert (world.config.bundles / "c1").is_dir()
    await delete_task(world.node, world.tasks["c2"])
    world.journal.clear()
    await shutdown_shim(world.node, world.shim)
    assert world.journal[:3] == ["shim gets signal 9", *SHIM_IS_DEAD]
    assert world.journal.count("shim delete c1") == 1
    assert f"bundle {POD}" in world.journal
    world.containers["c1"].holder = False
    world.journal.clear()
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == [*deleted("c1"), "TaskDelete c1"]
    assert world.left() == []


@pytest.mark.parametrize("failure", [Unknown("the cgroup is busy"), DeadlineExceeded("no answer")], ids=["fails", "mute"])
async def test_a_shim_that_never_deletes_goes_with_the_pod(world: World, failure: OrlopError) -> None:
    """Its container has no process, so that it must not keep the pod Terminating for ever."""

    def fail() -> None:
        raise failure

    world.answers["Delete"] = fail
    for name in ("c1", "c2"):
        with pytest.raises(PartlyReleased, match=f"no process any more, but its shim doesn't delete it: {failure}") as raised:
            await delete_task(world.node, world.tasks[name])
        assert raised.value.still_uses == {Kind.SNAPSHOT, Kind.CGROUP}
    assert world.shim_runs
    await shutdown_shim(world.node, world.shim)
    assert [line for line in world.journal if line.startswith("shim delete")] == ["shim delete c2", "shim delete c1"]
    assert world.left() == []


async def test_a_delete_that_fails_beside_a_process_leaves_the_task_in_its_shim(world: World) -> None:
    def fail() -> None:
        world.containers["c1"].runs = True
        raise Unknown("device or resource busy")

    world.answers["Delete"] = fail
    with pytest.raises(Unknown, match="busy"):
        await delete_task(world.node, world.tasks["c1"])
    assert world.tasks["c1"].stage is Stage.LIVE
    assert world.journal == ["Kill c1", "TaskExit c1 137", "Delete c1", "look c1"]
    with pytest.raises(FailedPrecondition, match="c1"):
        await shutdown_shim(world.node, world.shim)


@pytest.mark.field_fault("1")
async def test_a_busy_rootfs_goes_when_its_holder_has_gone(world: World) -> None:
    world.containers["c1"].holder = True
    with pytest.raises(PartlyReleased):
        await delete_task(world.node, world.tasks["c1"])
    world.containers["c1"].holder = False
    world.journal.clear()
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == ["Delete c1", "look c1", *freed("c1"), "TaskDelete c1"]


async def test_a_shim_that_can_never_delete_what_is_gone(world: World) -> None:
    """crun: once the engine's state is gone, Delete fails for ever."""

    def fail() -> None:
        world.end(world.containers["c1"])
        raise Unknown("cannot open directory: No such file or directory")

    world.answers["Delete"] = fail
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal[2:] == ["Delete c1", "look c1", "look c1", *freed("c1"), "TaskDelete c1"]
    assert list(world.shim.tasks) == ["c2"]


async def test_the_shim_dies_during_delete(world: World) -> None:
    """Whoever is first cleans all; the deleter waits for that and finds its task freed."""

    def die() -> None:
        world.shim_dies()
        raise Closed("reset")

    world.answers["Delete"] = die
    await delete_task(world.node, world.tasks["c1"])
    assert world.journal == [
        *["Kill c1", "TaskExit c1 137", "Delete c1"],
        *SHIM_IS_DEAD,
        *deleted("c2"),
        *deleted("c1"),
        *SHIM_IS_GONE,
        *told("c2"),
        "drop task c2",
        "TaskDelete c1",
        "drop task c1",
    ]


async def test_the_shim_dies_during_delete_of_its_own_task(task_world: World) -> None:
    """What is left of the shim is taken down once, though the task answers for it."""

    def die() -> None:
        task_world.shim_dies()
        raise Closed("reset")

    await delete_task(task_world.node, task_world.tasks["c1"])
    task_world.answers["Delete"] = die
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.journal.count("socket") == 1


async def test_the_shim_dies_during_delete_and_its_cleanup_fails(world: World) -> None:
    def die() -> None:
        world.shim_dies()
        raise Closed("reset")

    world.answers["Delete"] = die
    world.containers["c1"].holder = True
    with pytest.raises(PartlyReleased):
        await delete_task(world.node, world.tasks["c1"])
    assert world.journal.count("shim delete c1") == 1, "the cleanup's failure is the deleter's"
    assert "failed task c1" in world.journal


async def test_the_shim_dies_right_after_it_answered_delete(world: World) -> None:
    """Its cleanup is faster than the deleter, and owns the task by then."""
    task = world.tasks["c1"]

    def die() -> None:
        world.shim_dies()
        world.shim.died("")
        world.shim.dismiss(task)
        task.move(Stage.ORPHANED)

    world.answers["Delete"] = die
    await delete_task(world.node, task)
    assert task.stage is Stage.FREED
    assert world.journal[2:5] == ["Delete c1", *SHIM_IS_DEAD]


async def test_the_shim_dies_right_after_it_refused_delete(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the deleter looks why, its task becomes the cleanup's."""
    task = world.tasks["c1"]
    look = world.node.engine.has_state

    async def die(record: TaskRecord) -> bool:
        monkeypatch.undo()
        world.shim_dies()
        world.shim.died("")
        world.shim.dismiss(task)
        task.move(Stage.ORPHANED)
        return await look(record)

    def refuse() -> None:
        raise Unknown("device or resource busy")

    world.answers["Delete"] = refuse
    monkeypatch.setattr(world.node.engine, "has_state", die)
    await delete_task(world.node, task)
    assert "shim delete c1" in world.journal
    assert task.stage is Stage.FREED


async def test_a_shim_that_drops_us_and_lives_keeps_its_task(world: World) -> None:
    def drop() -> None:
        world.connection.lose()
        raise Closed("reset")

    world.answers["Delete"] = drop
    world.redials = True
    watching = asyncio.create_task(world.shim.watch())
    with pytest.raises(Closed):
        await delete_task(world.node, world.tasks["c1"])
    assert world.tasks["c1"].stage is Stage.LIVE
    del world.answers["Delete"]
    await delete_task(world.node, world.tasks["c1"])
    assert not any("shim delete" in line for line in world.journal)
    watching.cancel()


# ---- F


async def test_failed_create(world: World) -> None:
    """In a living pod `shim delete` is run for that container alone, with the connection open."""
    task = await world.add("c3", pid=103, created=False)
    world.containers["c3"].known_to_shim = False
    world.journal.clear()
    await cleanup_failed_create(world.node, task)
    assert world.journal == ["Delete c3", "identify c3", *deleted("c3"), "drop task c3"]
    assert world.shim.state is ShimState.CONNECTED
    assert world.containers["c1"].runs
    await cleanup_failed_create(world.node, task)
    assert world.journal[-1] == "drop task c3"
    assert world.journal.count("drop task c3") == 1


async def test_failed_create_before_create(world: World) -> None:
    task = await world.add("c3", pid=103, create=False, live=False, created=False)
    world.journal.clear()
    await cleanup_failed_create(world.node, task)
    assert world.journal == ["identify c3", "look c3", *freed("c3"), "drop task c3"]


async def test_failed_create_that_was_answered(world: World) -> None:
    """The ledger could not be written after it: the container is there, and taken down as such."""
    task = await world.add("c3", pid=103)
    world.journal.clear()
    await cleanup_failed_create(world.node, task)
    assert world.journal == ["Kill c3", "TaskExit c3 137", "Delete c3", "look c3", *freed("c3"), "TaskDelete c3", "drop task c3"]


async def test_failed_create_that_could_not_be_cleaned_up(world: World) -> None:
    task = await world.add("c3", pid=103, created=False)
    world.containers["c3"].known_to_shim = False
    world.containers["c3"].holder = True
    await cleanup_failed_create(world.node, task)
    assert world.journal[-1] == "failed task c3"
    assert "process 9 (tail)" in world.ledger.failures["c3"]


async def test_failed_create_as_the_first_task_ends_its_shim(tmp_path: Path) -> None:
    world = await World(tmp_path, (), pinned=False).build()
    task = await world.add("pod", pid=100, created=False)
    world.containers["pod"].known_to_shim = False
    world.journal.clear()
    await cleanup_failed_create(world.node, task)
    assert world.journal == [
        *["Delete pod", f"Shutdown {POD}", "shim exits", "shim has ended", *SHIM_IS_DEAD, "identify pod"],
        *deleted("pod"),
        *SHIM_IS_GONE,
        "drop task pod",
    ]
    assert world.left() == []


async def test_failed_create_whose_container_is_gone_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World(tmp_path, (), pinned=False).build()
    task = await world.add("pod", pid=100, created=False)
    world.containers["pod"].known_to_shim = False
    broken = Broken(world, "socket")
    monkeypatch.setattr(world.node.sockets, "remove_stale", broken)
    await cleanup_failed_create(world.node, task)
    assert world.journal[-1] == "failed task pod"
    broken.mended = True
    world.journal.clear()
    await delete_task(world.node, task)
    assert world.journal == SHIM_IS_GONE


# ---- S


async def test_shutdown(tmp_path: Path) -> None:
    world = await World(tmp_path, ()).build()
    await shutdown_shim(world.node, world.shim)
    assert world.journal == [
        *[f"Shutdown {POD}", "shim exits", "shim has ended", *SHIM_IS_DEAD],
        *SHIM_IS_GONE,
        *[f"bundle {POD}", f"work dir {POD}"],
    ]
    assert not world.shim.gate.is_open
    assert world.left() == []
    world.journal.clear()
    await shutdown_shim(world.node, world.shim)
    assert not any("shim" in line or "Shutdown" in line for line in world.journal if "cgroup" not in line), "the second time it is gone"


async def test_shutdown_closes_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.BUDGETS, "shutdown", 0.01)
    world = await World(tmp_path, ()).build()
    world.shim_ends_on_shutdown = False
    await shutdown_shim(world.node, world.shim)
    assert world.journal[:4] == [f"Shutdown {POD}", "shim gets signal 9", *SHIM_IS_DEAD]
    with pytest.raises(Closed, match="gone"):
        await world.shim.wait_connected()


async def test_shutdown_waits_for_a_create_in_flight(tmp_path: Path) -> None:
    world = await World(tmp_path, ()).build()
    with world.shim.gate.enter():
        stopping = asyncio.create_task(shutdown_shim(world.node, world.shim))
        await several_turns()
        assert world.journal == []
        with pytest.raises(FailedPrecondition, match="being stopped"), world.shim.gate.enter():
            pass
    await stopping
    assert world.journal[0] == f"Shutdown {POD}"


async def test_shutdown_kills_the_shim_under_a_create_that_does_not_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.BUDGETS, "gate", 0.01)
    with world.shim.gate.enter():
        await shutdown_shim(world.node, world.shim)
    assert world.journal[:3] == ["shim gets signal 9", *SHIM_IS_DEAD]
    assert world.journal[-2:] == [f"bundle {POD}", f"work dir {POD}"]
    exit_ = world.tasks["c1"].exited
    assert exit_ is not None
    assert "create did not end" in exit_.message


async def test_a_create_in_flight_is_waited_for_beside_a_busy_rootfs(world: World) -> None:
    for name in ("c1", "c2"):
        world.containers[name].holder = True
        with pytest.raises(PartlyReleased):
            await delete_task(world.node, world.tasks[name])
    world.journal.clear()
    with world.shim.gate.enter():
        stopping = asyncio.create_task(shutdown_shim(world.node, world.shim))
        await several_turns()
        assert world.journal == []
    await stopping


async def test_shutdown_refuses_while_there_are_tasks(world: World) -> None:
    with pytest.raises(FailedPrecondition, match="c1, c2"):
        await shutdown_shim(world.node, world.shim)
    assert world.journal == []


async def test_a_shim_whose_start_was_cut_off_is_who_is_in_its_cgroup(tmp_path: Path) -> None:
    world = await World(tmp_path, ()).build()
    world.shim.process = None
    await shutdown_shim(world.node, world.shim)
    assert f"cgroup kill {LEAF}" in world.journal


async def test_shutdown_of_a_shim_that_died_and_was_cleaned_up(world: World) -> None:
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    world.journal.clear()
    await shutdown_shim(world.node, world.shim)
    assert world.journal == [*SHIM_IS_GONE, f"bundle {POD}", f"work dir {POD}"]
    assert world.left() == []


async def test_a_task_shims_bundle_is_not_its_own(tmp_path: Path) -> None:
    world = await World(tmp_path, (), pinned=False).build()
    await shutdown_shim(world.node, world.shim)
    assert world.journal[-2:] == SHIM_IS_GONE


async def test_a_failure_holds_up_nothing_else_of_the_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World(tmp_path, ()).build()
    broken = Broken(world, "socket")
    monkeypatch.setattr(world.node.sockets, "remove_stale", broken)
    with pytest.raises(PartlyReleased, match="socket"):
        await shutdown_shim(world.node, world.shim)
    assert world.journal[-3:] == [f"cgroup remove {LEAF}", f"bundle {POD}", f"work dir {POD}"]
    assert str(world.shim.state) == "dead"
    broken.mended = True
    await shutdown_shim(world.node, world.shim)
    assert str(world.shim.state) == "cleaned"


# ---- a sandbox that is a task, in whose bundle the shim works


async def test_a_sandbox_ends_a_shim_that_can_not_delete_its_containers(task_world: World) -> None:
    """Its bundle goes with it: under a shim that lives, that would take away the log and the address of what is still in there."""
    task_world.containers["c1"].holder = True
    with pytest.raises(PartlyReleased):
        await delete_task(task_world.node, task_world.tasks["c1"])
    task_world.containers["c1"].holder = False
    task_world.journal.clear()
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.journal.index("shim has ended") < task_world.journal.index("shim delete c1") < task_world.journal.index("bundle pod")
    assert task_world.left() == []


async def test_a_sandbox_does_not_go_before_its_containers(task_world: World) -> None:
    with pytest.raises(FailedPrecondition, match="still has tasks, which go first: c1"):
        await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.containers["c1"].runs
    assert task_world.tasks["pod"].bundle.path.exists()


async def test_what_the_watcher_of_a_dead_shim_could_not_free_is_its_last_tasks(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died right after it had answered Delete, so that its cleanup found no task to leave it to."""
    await delete_task(task_world.node, task_world.tasks["c1"])
    broken = Broken(task_world, "socket")
    monkeypatch.setattr(task_world.node.sockets, "remove_stale", broken)
    task_world.tasks["pod"].move(Stage.DELETED)
    task_world.shim_dies()
    await cleanup_after_dead_shim(task_world.node, task_world.shim, "")
    with pytest.raises(PartlyReleased, match="socket"):
        await delete_task(task_world.node, task_world.tasks["pod"])
    broken.mended = True
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.left() == []
