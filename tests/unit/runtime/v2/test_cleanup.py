"""The table of `cleanup`'s docstring, row by row: the journal of all that is done to the node has to equal it.

Taking a step out of `cleanup`, or swapping two, changes a journal here. What a step's failure holds up is in `test_cleanup_faults`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from pathlib import Path

import pytest

from agent import metrics
from agent.events import Exit
from agent.runtime.v2 import cleanup, steps
from agent.runtime.v2.cleanup import cleanup_after_dead_shim, delete_task
from agent.runtime.v2.shim import ShimState
from agent.runtime.v2.task import Stage
from agent.store.release import PartlyReleased
from tests.unit.runtime.v2.journal import (
    SHIM_IS_DEAD,
    SHIM_IS_GONE,
    Broken,
    bundles,
    deleted,
    forget_state,
    freed,
    nothing,
    told,
    value,
    work_dirs,
)
from tests.unit.runtime.v2.world import LEAF, POD, World


def test_the_table_names_every_step_in_the_order_of_the_code() -> None:
    documented = re.findall(r"^    +([a-z_]+|\(lock\)) .*$", cleanup.__doc__ or "", re.MULTILINE)
    documented = [name for name in documented if name in steps.BUDGETS]
    source = Path(cleanup.__file__).read_text()
    written = re.findall(r'^@step\("(\w+)"\)$', source, re.MULTILINE)
    assert documented == written
    assert set(written) == set(steps.BUDGETS)


@pytest.mark.field_fault("9", "12")
async def test_dead_shim(world: World) -> None:
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "it was killed")
    assert world.journal == [
        *SHIM_IS_DEAD,
        *deleted("c2"),
        *deleted("c1"),
        *SHIM_IS_GONE,
        *told("c2"),
        "drop task c2",
        *told("c1"),
        "drop task c1",
    ]
    assert world.left() == [f"{cleanup_path(world)}/{POD}" for cleanup_path in (bundles, work_dirs)]
    assert world.shim.state is ShimState.CLEANED
    assert all(task.stage is Stage.FREED for task in world.tasks.values())


async def test_dead_shim_tells_why_the_status_is_lost(world: World) -> None:
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "it was killed")
    exit_ = world.tasks["c1"].exited
    assert exit_ is not None
    assert (exit_.status, exit_.reason, exit_.message, exit_.pid) == (255, "Unknown", "it was killed", 100)


async def test_dead_shim_of_a_sandbox_task(task_world: World) -> None:
    """The sandbox is the oldest task and the last to go; here it is also the newest, and still the last."""
    pod = task_world.shim.tasks.pop("pod")
    task_world.shim.tasks["pod"] = pod
    task_world.shim_dies()
    await cleanup_after_dead_shim(task_world.node, task_world.shim, "")
    assert task_world.journal == [
        *SHIM_IS_DEAD,
        *deleted("c1"),
        *deleted("pod"),
        *SHIM_IS_GONE,
        *told("c1"),
        "drop task c1",
        *told("pod"),
        "drop task pod",
    ]
    assert task_world.left() == []


async def test_a_shim_that_hangs_is_killed_first(world: World) -> None:
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert world.journal[:3] == ["shim gets signal 9", *SHIM_IS_DEAD]
    assert world.journal[3:] == [*deleted("c2"), *deleted("c1"), *world.journal[3 + 14 :]]


async def test_the_end_of_a_shim_is_known_to_callers_before_its_containers_are_touched(world: World) -> None:
    """A call in flight on a connection that a dead shim's child holds open ends with our close."""
    world.shim_runs = False
    world.shim_process.ended.set()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert world.journal[:4] == [*SHIM_IS_DEAD, "connection closed by us", "shim delete c2"]


async def test_an_exit_that_is_known_is_not_published_again(world: World) -> None:
    world.tasks["c1"].finish(Exit(3, 5, 100))
    world.containers["c1"].runs = False
    world.journal.clear()
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert [line for line in world.journal if line.startswith("Task")] == [*told("c2"), "TaskDelete c1"]


async def test_a_create_in_flight_has_neither_exit_nor_delete(world: World) -> None:
    await world.add("c3", pid=103, created=False)
    world.journal.clear()
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert world.journal[2:4] == ["identify c3", "shim delete c3"]
    assert [line for line in world.journal if "c3" in line][-2:] == ["work dir c3", "drop task c3"]
    assert world.tasks["c3"].exited is None


@pytest.mark.field_fault("12")
async def test_an_init_that_only_the_engine_knew_is_found_after_its_state_is_gone(world: World) -> None:
    """`shim delete` removes the state and not the process, which never got into its cgroup."""
    task = await world.add("c3", pid=103, created=False)
    container = world.containers["c3"]
    container.in_cgroup = False
    container.shim_delete_does = forget_state
    world.journal.clear()
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert "init of c3 gets signal 9" in world.journal
    assert task.stage is Stage.FREED


async def test_where_no_create_was_intended_nothing_is_deleted(world: World) -> None:
    await world.add("c3", pid=103, create=False, created=False)
    world.journal.clear()
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert [line for line in world.journal if "c3" in line] == ["identify c3", "look c3", *freed("c3"), "drop task c3"]


async def test_what_shim_delete_leaves_is_reaped(world: World) -> None:
    world.containers["c2"].shim_delete_does = nothing
    inits = metrics.runc_init_found.labels("init"), metrics.runc_init_reaped.labels("init")
    lies, found, reaped = value(metrics.shim_delete_lies), *map(value, inits)
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    rows = [line for line in world.journal if "c2" in line]
    assert rows == ["shim delete c2", "look c2", "cgroup kill /pods/c2", "engine delete c2", *freed("c2"), *told("c2"), "drop task c2"]
    assert value(metrics.shim_delete_lies) == lies + 1
    assert [*map(value, inits)] == [found + 1, reaped + 1]


async def test_a_shim_delete_that_fails_is_no_lie(world: World) -> None:
    for container in world.containers.values():
        container.shim_delete_does, container.shim_delete_says = nothing, 1
    lies = value(metrics.shim_delete_lies)
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert all(task.stage is Stage.FREED for task in world.tasks.values())
    assert value(metrics.shim_delete_lies) == lies


async def test_a_shim_delete_that_works_is_no_lie(world: World) -> None:
    lies = value(metrics.shim_delete_lies)
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert value(metrics.shim_delete_lies) == lies


@pytest.mark.field_fault("M5")
async def test_only_the_engines_state_is_left(world: World) -> None:
    container = world.containers["c2"]
    container.shim_delete_does = lambda world, container: world.kill(container)
    container.mounted = False
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert [line for line in world.journal if "c2" in line][:4] == ["shim delete c2", "look c2", "engine delete c2", "unmount c2"]


async def test_a_bundle_that_is_gone_is_told_and_the_rest_is_taken_down(world: World) -> None:
    os.rename(world.config.bundles / "c2", world.config.bundles / "elsewhere")
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    rows = [line for line in world.journal if "c2" in line]
    assert rows == ["look c2", "cgroup kill /pods/c2", "engine delete c2", *freed("c2"), *told("c2"), "drop task c2"]


async def test_the_outcome_is_counted(world: World) -> None:
    clean, incomplete = (metrics.dead_shim_cleanups.labels(outcome) for outcome in ("clean", "incomplete"))
    before = value(clean), value(incomplete)
    world.containers["c1"].holder = True
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert (value(clean), value(incomplete)) == (before[0], before[1] + 1)
    other = await World(world.config.state_dir.parent / "other").build()
    other.shim_dies()
    await cleanup_after_dead_shim(other.node, other.shim, "")
    assert value(clean) == before[0] + 1


async def test_the_cleanup_has_not_ended_before_all_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees CLEANED may start another shim, and sees no event of the old one's tasks any more."""
    states: list[ShimState] = []
    monkeypatch.setattr(world.exchange, "publish", lambda event: states.append(world.shim.state))
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert states == [ShimState.DEAD] * 4


async def test_one_pod_does_not_wait_for_another(world: World, tmp_path: Path) -> None:
    other = await World(tmp_path / "other").build()
    other.shim.record = dataclasses.replace(other.shim.record, id="other")
    other.node = dataclasses.replace(other.node, locks=world.node.locks)
    other.shim_dies()
    world.shim_dies()
    async with world.node.locks.hold(f"shim {POD}"):
        waiting = asyncio.ensure_future(cleanup_after_dead_shim(world.node, world.shim, ""))
        await cleanup_after_dead_shim(other.node, other.shim, "")
        assert world.journal == []
    await waiting


async def test_a_retry_frees_what_a_dead_shims_cleanup_could_not(world: World) -> None:
    world.containers["c2"].holder = True
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert [line for line in world.journal if "task c" in line] == ["failed task c2", "drop task c1"]
    assert world.tasks["c2"].exited is not None
    world.journal.clear()
    with pytest.raises(PartlyReleased):
        await delete_task(world.node, world.tasks["c2"])
    assert world.journal == ["shim delete c2", "look c2", *freed("c2")[:3]], "one more attempt, and no second exit"
    world.containers["c2"].holder = False
    world.journal.clear()
    await delete_task(world.node, world.tasks["c2"])
    assert world.journal == [*deleted("c2"), "TaskDelete c2"]


async def test_a_container_that_still_runs_has_no_exit_until_it_has_ended(world: World) -> None:
    container = world.containers["c2"]
    container.unkillable, container.shim_delete_does = True, nothing
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "why")
    assert [line for line in world.journal if "c2" in line] == ["shim delete c2", "look c2", "cgroup kill /pods/c2", "failed task c2"]
    assert (world.config.bundles / "c2").is_dir()
    container.unkillable = False
    container.holder = True
    world.journal.clear()
    with pytest.raises(PartlyReleased):
        await delete_task(world.node, world.tasks["c2"])
    assert world.journal[-1] == "TaskExit c2 255"
    exit_ = world.tasks["c2"].exited
    assert exit_ is not None
    assert exit_.message == "why"


async def test_the_socket_of_a_task_shim_is_its_sandboxs_business(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the ledger's entry of the task answers for what is left of its shim; both are tried again."""
    broken = Broken(task_world, "socket")
    monkeypatch.setattr(task_world.node.sockets, "remove_stale", broken)
    task_world.shim_dies()
    await cleanup_after_dead_shim(task_world.node, task_world.shim, "")
    assert [line for line in task_world.journal if "task " in line] == ["drop task c1", "failed task pod"]
    broken.mended = True
    task_world.journal.clear()
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.journal == ["socket", f"cgroup remove {LEAF}", "TaskDelete pod"]


async def test_the_cgroup_of_a_task_shim_is_its_sandboxs_business(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = task_world.node.cgroups.remove

    async def refuse(path: str) -> None:
        if path == LEAF and not mended:
            raise OSError("no")
        await remove(path)

    mended = False
    monkeypatch.setattr(task_world.node.cgroups, "remove", refuse)
    task_world.shim_dies()
    await cleanup_after_dead_shim(task_world.node, task_world.shim, "")
    assert [line for line in task_world.journal if "task " in line] == ["drop task c1", "failed task pod"]
    with pytest.raises(PartlyReleased, match="no"):
        await delete_task(task_world.node, task_world.tasks["pod"])
    mended = True
    await delete_task(task_world.node, task_world.tasks["pod"])
    assert task_world.tasks["pod"].stage is Stage.FREED


async def test_the_socket_of_a_pinned_shim_holds_up_no_container(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.node.sockets, "remove_stale", Broken(world, "socket"))
    world.shim_dies()
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert [line for line in world.journal if "task " in line] == ["drop task c2", "drop task c1"]
