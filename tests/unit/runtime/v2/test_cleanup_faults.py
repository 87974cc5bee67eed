"""Each step of teardown x {fails, hangs past its budget, its caller is cancelled, a second caller comes}: what still happens, and what is
still owned.

The rule behind the table below: a step that fails holds up only what depends on it, in its own container.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import failpoints
from agent.errdefs import DeadlineExceeded, Internal, OrlopError
from agent.runtime.v2 import steps
from agent.runtime.v2.cleanup import cleanup_after_dead_shim, cleanup_failed_create, delete_task, shutdown_shim
from agent.runtime.v2.shim import ShimState
from agent.runtime.v2.task import Stage
from tests.unit.runtime.v2.world import LEAF, POD, World

OF_A_DEAD_SHIM = {
    # step that fails for c2 -> what is not done for c2 any more in that cleanup
    "identify": ["shim delete", "look", "unmount", "engine state", "cgroup remove", "bundle", "work dir", "TaskExit", "TaskDelete", "drop"],
    "shim_delete": ["shim delete"],
    "verify": ["look", "unmount", "engine state", "cgroup remove", "bundle", "work dir", "TaskExit", "TaskDelete", "drop"],
    "unmount": ["unmount", "bundle", "work dir", "TaskDelete", "drop"],
    "engine_state": ["engine state", "bundle", "work dir", "TaskDelete", "drop"],
    "cgroup": ["cgroup remove", "bundle", "work dir", "TaskDelete", "drop"],
    "bundle": ["bundle", "work dir", "TaskDelete", "drop"],
    "work_dir": ["work dir", "TaskDelete", "drop"],
    "publish": ["TaskExit", "TaskDelete", "drop"],
    "drop": ["drop"],
}
ROWS = ["shim delete", "look", "unmount", "engine state", "cgroup remove", "bundle", "work dir", "TaskExit", "TaskDelete", "drop"]
OF_ONE_TASK = ("identify", "verify", "unmount", "engine_state", "cgroup", "bundle", "work_dir", "publish")
TOLERATED = ("shim_delete", "drop")

FAULTS = pytest.mark.parametrize("fault", ["error(boom)", "hang"])

Call = Callable[[World], Awaitable[None]]


@pytest.fixture
def break_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a step fail the first time it is taken: at once, or when its budget is over."""

    def arm(step: str, fault: str) -> None:
        failpoints.configure(f"cleanup.{step}=1*{fault}")
        if fault == "hang":
            monkeypatch.setattr(steps, "BUDGETS", ShortOnce(steps.BUDGETS, step))

    return arm


class ShortOnce(dict[str, float]):
    """Budgets of which one is over at once, the first time; later the machine may be as busy as it likes."""

    def __init__(self, budgets: dict[str, float], step: str) -> None:
        super().__init__(budgets)
        self._short = {step}

    def __getitem__(self, step: str) -> float:
        if step in self._short:
            self._short.clear()
            return 0.01
        return super().__getitem__(step)


Arm = Callable[[str, str], None]


def rows_of(world: World, name: str) -> list[str]:
    """The rows that were passed for a container, by the words that the journal has for them."""
    return [row for row in ROWS if any(line.startswith(row) and name in line for line in world.journal)]


# ---- fails, or hangs past its budget


@FAULTS
@pytest.mark.parametrize("step", OF_A_DEAD_SHIM)
async def test_dead_shim(world: World, break_step: Arm, step: str, fault: str) -> None:
    world.shim_dies()
    break_step(step, fault)
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert rows_of(world, "c1") == ROWS, "the other container is not held up"
    assert rows_of(world, "c2") == [row for row in ROWS if row not in OF_A_DEAD_SHIM[step]]
    assert [line for line in world.journal if line.startswith(("socket", f"cgroup remove {LEAF}"))] == ["socket", f"cgroup remove {LEAF}"]
    assert world.shim.state is ShimState.CLEANED
    if step not in TOLERATED:
        assert "failed task c2" in world.journal, "what failed is owned"
        assert world.ledger.failures["c2"]
        await delete_task(world.node, world.tasks["c2"])
    assert world.tasks["c2"].stage is Stage.FREED
    assert [line for line in world.journal if line.startswith("Task") and "c2" in line] == ["TaskExit c2 255", "TaskDelete c2"]
    assert not (world.config.bundles / "c2").exists()


@FAULTS
async def test_dead_shim_that_can_not_be_reaped(world: World, break_step: Arm, fault: str) -> None:
    world.containers["c2"].shim_delete_does = lambda world, container: None
    world.shim_dies()
    break_step("reap", fault)
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert rows_of(world, "c2") == ["shim delete", "look"], "neither its bundle is touched nor its exit told"
    assert rows_of(world, "c1") == ROWS
    await delete_task(world.node, world.tasks["c2"])
    assert world.left() == [path for path in world.left() if path.endswith(POD)]


@FAULTS
async def test_a_shim_that_does_not_die_keeps_all_it_has(world: World, break_step: Arm, fault: str) -> None:
    break_step("shim_dead", fault)
    with pytest.raises((Internal, DeadlineExceeded)):
        await cleanup_after_dead_shim(world.node, world.shim, "")
    assert world.journal == []
    assert all(task.stage is Stage.LIVE for task in world.tasks.values())
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert all(task.stage is Stage.FREED for task in world.tasks.values())


@FAULTS
async def test_a_connection_that_does_not_close_holds_up_nothing(world: World, break_step: Arm, fault: str) -> None:
    world.shim_dies()
    break_step("close", fault)
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert all(task.stage is Stage.FREED for task in world.tasks.values())


@FAULTS
@pytest.mark.parametrize(("step", "row"), [("socket", "socket"), ("shim_cgroup", f"cgroup remove {LEAF}")])
async def test_what_is_left_of_a_dead_shim_holds_up_no_container(world: World, break_step: Arm, step: str, row: str, fault: str) -> None:
    world.shim_dies()
    break_step(step, fault)
    await cleanup_after_dead_shim(world.node, world.shim, "")
    assert rows_of(world, "c1") == rows_of(world, "c2") == ROWS
    assert row not in world.journal
    await shutdown_shim(world.node, world.shim)
    assert row in world.journal, "the shim's own entry is still there"


@FAULTS
@pytest.mark.parametrize(
    "step", ["kill", "task_delete", "identify", "verify", "unmount", "engine_state", "cgroup", "bundle", "work_dir", "publish"]
)
async def test_delete(world: World, break_step: Arm, step: str, fault: str) -> None:
    break_step(step, fault)
    with pytest.raises(OrlopError):
        await delete_task(world.node, world.tasks["c1"])
    assert world.tasks["c1"].stage is (Stage.LIVE if step in ("kill", "task_delete") else Stage.DELETED)
    assert "TaskDelete c1" not in world.journal
    assert rows_of(world, "c2") == []
    assert world.shim.state is ShimState.CONNECTED
    await delete_task(world.node, world.tasks["c1"])
    assert [line for line in world.journal if line.startswith("Task")] == ["TaskExit c1 137", "TaskDelete c1"]
    assert world.journal.count("Delete c1") == 1
    assert not any(line.startswith("shim delete") for line in world.journal), "it was deleted in order"


@FAULTS
@pytest.mark.parametrize("step", ["shim_dead", "socket", "shim_cgroup"])
async def test_delete_of_the_last_task(task_world: World, break_step: Arm, step: str, fault: str) -> None:
    world = task_world
    await delete_task(world.node, world.tasks["c1"])
    break_step(step, fault)
    with pytest.raises(OrlopError):
        await delete_task(world.node, world.tasks["pod"])
    await delete_task(world.node, world.tasks["pod"])
    assert [line for line in world.journal if line.startswith("Task") and "pod" in line] == ["TaskExit pod 137", "TaskDelete pod"]
    assert world.shim.state is ShimState.CLEANED
    assert {"socket", f"cgroup remove {LEAF}"} <= set(world.journal)
    assert world.left() == []


@FAULTS
@pytest.mark.parametrize("step", ["shutdown", "close"])
async def test_delete_of_the_last_task_goes_on(task_world: World, break_step: Arm, step: str, fault: str) -> None:
    world = task_world
    await delete_task(world.node, world.tasks["c1"])
    break_step(step, fault)
    await delete_task(world.node, world.tasks["pod"])
    assert world.shim.state is ShimState.CLEANED
    assert world.left() == []


@FAULTS
@pytest.mark.parametrize(
    "step", ["task_delete", "identify", "verify", "unmount", "engine_state", "cgroup", "bundle", "work_dir", "publish"]
)
async def test_failed_create(world: World, break_step: Arm, step: str, fault: str) -> None:
    task = await world.add("c3", pid=103, created=False)
    world.containers["c3"].known_to_shim = False
    break_step(step, fault)
    await cleanup_failed_create(world.node, task)
    assert world.journal[-1] == "failed task c3"
    await delete_task(world.node, task)
    assert task.stage is Stage.FREED
    assert not (world.config.bundles / "c3").exists()
    assert not any(line.startswith("Task") for line in world.journal)


@FAULTS
@pytest.mark.parametrize("step", ["shim_delete", "drop"])
async def test_failed_create_goes_on(world: World, break_step: Arm, step: str, fault: str) -> None:
    task = await world.add("c3", pid=103, created=False)
    world.containers["c3"].known_to_shim = False
    break_step(step, fault)
    await cleanup_failed_create(world.node, task)
    assert task.stage is Stage.FREED
    assert not (world.config.bundles / "c3").exists()


@FAULTS
@pytest.mark.parametrize("step", ["shim_dead", "socket", "shim_cgroup", "shim_bundle"])
async def test_shutdown(tmp_path: Path, break_step: Arm, step: str, fault: str) -> None:
    world = await World(tmp_path, ()).build()
    break_step(step, fault)
    with pytest.raises(OrlopError):
        await shutdown_shim(world.node, world.shim)
    await shutdown_shim(world.node, world.shim)
    assert world.left() == []
    assert str(world.shim.state) == "cleaned"


@pytest.mark.field_fault("S3")
@FAULTS
async def test_a_shim_that_does_not_die_is_not_taken_for_dead_the_next_time(
    tmp_path: Path, break_step: Arm, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    world = await World(tmp_path, ()).build()
    world.shim_ends_on_shutdown = False
    monkeypatch.setitem(steps.BUDGETS, "shutdown", 0.01)
    break_step("shim_dead", fault)
    with pytest.raises(OrlopError):
        await shutdown_shim(world.node, world.shim)
    assert world.shim_runs
    await shutdown_shim(world.node, world.shim)
    assert world.left() == []


@FAULTS
@pytest.mark.parametrize("step", ["shutdown", "close"])
async def test_shutdown_goes_on(tmp_path: Path, break_step: Arm, step: str, fault: str) -> None:
    world = await World(tmp_path, ()).build()
    break_step(step, fault)
    await shutdown_shim(world.node, world.shim)
    assert world.left() == []


async def test_shutdown_whose_gate_fails_touches_nothing(world: World, break_step: Arm) -> None:
    break_step("gate", "error(boom)")
    with pytest.raises(Internal):
        await shutdown_shim(world.node, world.shim)
    assert world.journal == []


# ---- the caller is cancelled, or a second one comes


class Pause:
    """Holds teardown at a step, until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self._name = f"cleanup.{step}"
        monkeypatch.setattr(failpoints, "hit", self._hit)

    async def _hit(self, name: str) -> None:
        if name == self._name and not self.reached.is_set():
            self.reached.set()
            await self.go.wait()


async def dead_shim(world: World) -> None:
    await cleanup_after_dead_shim(world.node, world.shim, "")


async def one_task(world: World) -> None:
    await delete_task(world.node, world.tasks["c1"])


async def failed_create(world: World) -> None:
    await cleanup_failed_create(world.node, world.tasks["c1"])


async def one_shim(world: World) -> None:
    await shutdown_shim(world.node, world.shim)


CALLS = [
    *((dead_shim, step) for step in ("shim_dead", "close", "socket", "shim_cgroup", *OF_A_DEAD_SHIM)),
    *(
        (one_task, step)
        for step in ("kill", "task_delete", "identify", "verify", "unmount", "engine_state", "cgroup", "bundle", "work_dir", "publish")
    ),
    *((failed_create, step) for step in ("kill", "task_delete", "identify", "verify", "unmount", "bundle", "publish", "drop")),
    *((one_shim, step) for step in ("gate", "shutdown", "shim_dead", "close", "socket", "shim_cgroup", "shim_bundle")),
]
CALLERS = pytest.mark.parametrize(("call", "step"), CALLS, ids=[f"{call.__name__}-{step}" for call, step in CALLS])


async def pod_for(call: Call, tmp: Path) -> World:
    world = await World(tmp, () if call is one_shim else ("c1", "c2")).build()
    if call is dead_shim:
        world.shim_dies()
    return world


@CALLERS
async def test_a_caller_that_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, step: str) -> None:
    """The work goes on to its end, as if nothing had been."""
    undisturbed = await pod_for(call, tmp_path / "undisturbed")
    await call(undisturbed)
    world = await pod_for(call, tmp_path / "cancelled")
    pause = Pause(monkeypatch, step)
    caller = asyncio.ensure_future(call(world))
    await pause.reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    pause.go.set()
    await world.supervisor.stop(5)
    assert world.journal == undisturbed.journal
    assert world.left() == [path.replace("undisturbed", "cancelled") for path in undisturbed.left()]


@CALLERS
async def test_a_second_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, step: str) -> None:
    """It waits for the first and does nothing twice."""
    undisturbed = await pod_for(call, tmp_path / "undisturbed")
    await call(undisturbed)
    world = await pod_for(call, tmp_path / "twice")
    pause = Pause(monkeypatch, step)
    first = asyncio.ensure_future(call(world))
    await pause.reached.wait()
    others = [asyncio.ensure_future(call(world)) for _ in range(2)]
    await asyncio.sleep(0)
    pause.go.set()
    await asyncio.gather(first, *others)
    assert world.journal[: len(undisturbed.journal)] == undisturbed.journal
    repeated = set(world.journal[len(undisturbed.journal) :])
    assert repeated <= ({"socket", f"cgroup remove {LEAF}", f"bundle {POD}", f"work dir {POD}"} if call is one_shim else set())


@pytest.mark.field_fault("3")
@pytest.mark.parametrize("step", ["shim_dead", "close", "shim_delete", "unmount", "socket", "publish", "drop"])
async def test_a_deleter_waits_for_the_cleanup_of_its_shim(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Invariant 2: whoever deletes a task of a dead shim touches nothing before that shim's cleanup has ended."""
    world.shim_dies()
    pause = Pause(monkeypatch, step)
    cleaning = asyncio.ensure_future(dead_shim(world))
    await pause.reached.wait()
    before = list(world.journal)
    deleting = asyncio.ensure_future(one_task(world))
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.journal in (before, [*before, "Kill c1"])
    pause.go.set()
    await asyncio.gather(cleaning, deleting)
    assert world.journal.count("shim delete c1") == 1
    assert world.journal.count("TaskDelete c1") == 1


async def test_a_delete_under_way_is_not_orphaned_by_the_death_of_its_shim(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim has let go of the container: it is the deleter's, and stays so."""
    pause = Pause(monkeypatch, "unmount")
    deleting = asyncio.ensure_future(one_task(world))
    await pause.reached.wait()
    world.shim_dies()
    await dead_shim(world)
    assert "shim delete c1" not in world.journal
    assert "TaskDelete c2" in world.journal
    pause.go.set()
    await deleting
    assert [line for line in world.journal if "c1" in line][-1] == "TaskDelete c1"


async def test_deletes_in_one_pinned_shim_run_beside_each_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause(monkeypatch, "unmount")
    slow = asyncio.ensure_future(one_task(world))
    await pause.reached.wait()
    await delete_task(world.node, world.tasks["c2"])
    assert "TaskDelete c2" in world.journal
    pause.go.set()
    await slow


async def test_deletes_in_a_task_shim_run_one_after_the_other(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kata wants it so, and nothing may come between the end of the shim and the last task's remains."""
    pause = Pause(monkeypatch, "unmount")
    first = asyncio.ensure_future(delete_task(task_world.node, task_world.tasks["c1"]))
    await pause.reached.wait()
    second = asyncio.ensure_future(delete_task(task_world.node, task_world.tasks["pod"]))
    for _ in range(50):
        await asyncio.sleep(0)
    assert f"Shutdown {POD}" in task_world.journal
    assert "shim exits" not in task_world.journal
    pause.go.set()
    await asyncio.gather(first, second)
    assert task_world.journal.index("TaskDelete pod") > task_world.journal.index("work dir c1")
    assert task_world.left() == []


async def test_a_create_that_comes_while_the_last_task_goes_is_cleaned_up(task_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that is open lets it in; the shim ends under it."""
    await delete_task(task_world.node, task_world.tasks["c1"])
    pause = Pause(monkeypatch, "shutdown")
    last = asyncio.ensure_future(delete_task(task_world.node, task_world.tasks["pod"]))
    await pause.reached.wait()
    late = await task_world.add("c3", pid=103, created=False)
    task_world.containers["c3"].known_to_shim = False
    pause.go.set()
    await last
    assert str(late.stage) == "orphaned"
    assert "connection closed before its tasks were taken over" not in task_world.journal
    await cleanup_failed_create(task_world.node, late)
    assert str(late.stage) == "freed"
    assert task_world.journal.count("shim delete c3") == 1
    assert task_world.left() == []
