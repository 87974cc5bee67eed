"""The task manager on simulated shims: which shim a task goes into, what is in the ledger when, how tasks live and go."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from agent import failpoints, timeouts
from agent.errdefs import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unknown
from agent.events import Exit, TaskOOM
from agent.linux.processes import Completed
from agent.runtime.v2 import bootstrap
from agent.runtime.v2.task import CreateTask
from agent.store.ledger import Intent, Kind, State
from tests.unit.runtime.v2.rig import GVISOR, RUNC, Rig, until
from tests.unit.runtime.v2.sim import FAILS

# ---- pinned sandboxes


async def test_a_pinned_pod(rig: Rig) -> None:
    await rig.pinned()
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    assert held.state is State.HELD
    assert held.data["pid"] == rig.node.shim("pod").process.pid
    task = await rig.create()
    await task.start()
    assert rig.node.commands == ["start pod"], "containers join by address"
    assert [call for call in rig.node.calls if call != "Wait c1"] == ["Connect pod", "Connect pod", "Create c1", "Start c1"]
    assert (rig.bundle("c1") / "sandbox").read_text() == "pod"
    assert bootstrap.read(rig.bundle("c1")).address == "/pod"
    assert task.pid == rig.node.shim("pod").containers["c1"].process.pid
    assert rig.manager.get("c1") is task
    assert rig.manager.tasks() == [task]
    rig.node.shim("pod").containers["c1"].stop(7)
    assert (await task.wait()).status == 7
    await rig.manager.delete("c1")
    with pytest.raises(NotFound):
        rig.manager.get("c1")
    assert "Shutdown pod" not in rig.node.calls
    await rig.create("c2")
    await rig.release()
    assert rig.node.calls.count("Shutdown pod") == 1


async def test_who_has_left_the_pods_network(rig: Rig) -> None:
    await rig.pinned()
    assert rig.manager.shim_is_outside("pod")
    assert not rig.manager.shim_is_outside("another")
    task = await rig.create()
    assert not await rig.manager.has_ended("c1"), "it runs"
    rig.node.shim("pod").containers["c1"].stop(7)
    await task.wait()
    rig.node.members["/pods/c1"] = {77}
    assert not await rig.manager.has_ended("c1"), "it left somebody behind"
    rig.node.members.clear()
    assert await rig.manager.has_ended("c1")
    await rig.manager.delete("c1")
    assert not await rig.manager.has_ended("c1"), "not known"


async def test_a_vm_is_in_the_pods_network(rig: Rig) -> None:
    task = await rig.sandbox_task(GVISOR)
    rig.node.shim("pod").containers["pod"].stop(0)
    await task.wait()
    assert not await rig.manager.has_ended("pod")
    assert not rig.manager.shim_is_outside("pod")


async def test_the_spec_says_what_shims_group_by(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    config = json.loads((rig.bundle("c1") / "config.json").read_text())
    assert config["annotations"] == {
        "mine": "kept",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "pod",
    }
    config = json.loads((rig.bundle("pod") / "config.json").read_text())
    assert config["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
    assert config["annotations"]["io.kubernetes.cri.sandbox-name"] == "web"


async def test_what_is_in_the_ledger_when_create_is_sent(rig: Rig) -> None:
    """Whoever dies right after it knows what there may be."""
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert (held.data["create"], held.data["pid"], held.data["cgroup"], held.data["shim"]) == (True, 0, "/pods/c1", "pod")
    rig.node.hang["Create"].set()
    task = await creating
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert (held.data["pid"], held.data["start_time"]) == (task.pid, task.pid * 10)


async def test_a_create_that_fails_leaves_the_pod_usable(rig: Rig) -> None:
    await rig.pinned()
    await rig.create("c1")
    rig.node.fail["Create"] = FAILS
    with pytest.raises(Unknown, match="OCI runtime create failed"):
        await rig.create("c2")
    assert "delete c2" in rig.node.commands
    assert rig.ledger.get(Kind.TASK, "c2") is None
    assert not rig.bundle("c2").exists()
    assert rig.told("c2") == []
    assert [task.id for task in rig.manager.tasks()] == ["c1"]
    await rig.create("c2")
    await rig.release()


@pytest.mark.field_fault("0a")
async def test_a_create_whose_caller_gives_up_goes_on(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    rig.node.hang["Create"].set()
    await rig.manager.get("c1").settled.wait()
    assert rig.manager.get("c1").pid
    await rig.release()


async def test_a_create_the_ledger_can_not_take_is_refused(rig: Rig) -> None:
    """Nothing is sent, and nothing is left."""
    await rig.pinned()
    failpoints.configure("store.hold.commit=error(disk full)")
    with pytest.raises(Exception, match="disk full"):
        await rig.create()
    failpoints.configure("")
    assert not any(call.startswith("Create") for call in rig.node.calls)
    assert rig.node.commands == ["start pod"], "what was not intended needs no `shim delete`"
    assert not rig.bundle("c1").exists()
    await rig.release()


async def test_create_twice(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    with pytest.raises(AlreadyExists):
        await rig.create()
    await rig.release()


async def test_create_without_a_sandbox(rig: Rig) -> None:
    with pytest.raises(NotFound, match="no shim"):
        await rig.create()
    assert rig.left() == []


@pytest.mark.parametrize("name", ["", "../c1", "a/b"])
async def test_create_with_a_hostile_id(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await rig.manager.create(CreateTask(name, "pod", RUNC, {}, []))


async def test_a_sandbox_that_is_being_stopped(rig: Rig) -> None:
    """Its Shutdown waits for the create in flight; a new one is refused."""
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    stopping = asyncio.ensure_future(rig.manager.stop_shim("pod"))
    await until(lambda: not rig.manager._gate("pod").is_open)
    with pytest.raises(FailedPrecondition, match="being stopped"):
        await rig.create("c2")
    assert "Shutdown pod" not in rig.node.calls
    rig.node.hang["Create"].set()
    await creating
    with pytest.raises(FailedPrecondition, match="c1"):
        await stopping
    await rig.ledger.drop(Kind.TASK, "c2")
    await rig.release()


async def test_a_second_shim_for_a_sandbox(rig: Rig) -> None:
    await rig.pinned()
    with pytest.raises(AlreadyExists):
        await rig.manager.start_shim("pod", RUNC, {})
    await rig.release()


# ---- starting


async def test_a_start_that_fails_leaves_nothing(rig: Rig) -> None:
    rig.node.start_says = Completed(1, b"", b"no such thing")
    with pytest.raises(Unknown, match="no such thing"):
        await rig.pinned()
    assert rig.left() == []
    assert rig.manager._shims == {}
    await rig.release()


async def test_a_shim_that_dies_at_once_is_told_with_its_log(rig: Rig) -> None:
    def panic(shim: Any) -> None:
        (rig.bundle("pod") / "log").write_bytes(b"panic: no such plugin\n")
        shim.die()

    rig.node.hang["Connect"] = asyncio.Event()
    starting = asyncio.ensure_future(rig.pinned())
    await rig.node.hanging.wait()
    await asyncio.to_thread(panic, rig.node.shim("pod"))
    with pytest.raises(Unavailable, match="panic: no such plugin"):
        await starting
    del rig.node.hang["Connect"]
    await rig.release()


async def test_a_shim_binary_that_is_not_there(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod"))
    with pytest.raises(NotFound, match="/no/such/shim"):
        await rig.manager.start_shim("pod", replace(RUNC, path="/no/such/shim"), {})
    assert rig.left() == []
    await rig.release()


async def test_an_upgraded_binary_says_another_version_than_the_shim_speaks(rig: Rig) -> None:
    rig.node.printed_version = 3
    await rig.pinned()
    assert bootstrap.read(rig.bundle("pod")).version == 2
    await rig.restart()
    assert rig.node.calls[0] == "Connect pod"
    await rig.create()
    assert bootstrap.read(rig.bundle("c1")).version == 2
    await rig.release()


# ---- the sandbox as a task


async def test_a_pod_with_a_sandbox_task(rig: Rig) -> None:
    sandbox = await rig.sandbox_task()
    task = await rig.create()
    assert rig.node.commands == ["start pod"], "runc's shims group, whatever their version"
    assert task.shim is sandbox.shim
    await rig.manager.delete("c1")
    assert rig.node.calls.count("Shutdown pod") == 1
    assert rig.node.shim("pod").process.alive()
    await rig.release()


async def test_a_first_create_that_fails_ends_the_shim(rig: Rig) -> None:
    rig.node.fail["Create"] = FAILS
    with pytest.raises(Unknown):
        await rig.sandbox_task()
    assert not rig.node.shim("pod").process.alive()
    assert rig.ledger.get(Kind.TASK, "pod") is None
    await rig.release()


async def test_shims_that_do_not_group(rig: Rig) -> None:
    """gVisor without grouping: a shim for each container, which lives and goes with it."""
    rig.node.groups = False
    await rig.sandbox_task(GVISOR)
    task = await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod", "start c1"]
    assert task.shim.id == "c1"
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert held.data["own_shim"]["pid"] == rig.node.shim("c1").process.pid
    await rig.restart()
    await rig.manager.delete("c1")
    assert not rig.node.shim("c1").process.alive()
    assert rig.node.shim("pod").process.alive()
    assert list(rig.manager._shims) == ["pod"]
    await rig.release()


async def test_a_start_that_leads_to_the_shim_that_runs(rig: Rig) -> None:
    """gVisor with grouping, Kata: `start` is run, and prints the sandbox's address."""
    sandbox = await rig.sandbox_task(GVISOR)
    task = await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod", "start c1"]
    assert task.shim is sandbox.shim
    assert rig.node.cgroups_made == {"/shims/pod"}
    await rig.release()


async def test_a_shim_of_the_third_version_is_joined(rig: Rig) -> None:
    rig.node.printed_version = rig.node.served_version = 3
    await rig.sandbox_task(GVISOR)
    await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod"]
    await rig.release()


# ---- events


async def test_an_exit_that_an_event_tells_is_told_once(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.manager.exited("c1", "", Exit(9, 5, task.pid))
    rig.node.shim("pod").containers["c1"].stop(4)
    assert (await task.wait()).status == 9
    rig.manager.exited("unknown", "", Exit(9, 5, 1))
    await rig.release()
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]


async def test_an_exec(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "/out", "/err")
    with pytest.raises(AlreadyExists):
        await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    await process.kill(9)
    assert (await process.wait()).status == 3
    await process.delete()
    assert task.execs == {}
    assert rig.told("c1") == []
    await rig.release()


async def test_an_exec_whose_exit_an_event_tells(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    rig.manager.exited("c1", "e1", Exit(6, 5, process.pid))
    rig.manager.exited("c1", "unknown", Exit(6, 5, 1))
    assert (await process.wait()).status == 6
    await rig.release()


async def test_an_exec_in_a_shim_that_dies(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    rig.node.shim("pod").die()
    exit_ = await process.wait()
    assert (exit_.status, exit_.reason) == (255, "Unknown")
    await rig.release()


async def test_an_exec_that_the_engine_refuses(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.fail["Exec"] = Unknown("no")
    with pytest.raises(Unknown):
        await task.exec("e1", {"args": ["true"]}, "", "", "")
    assert task.execs == {}
    await rig.release()


async def test_out_of_memory(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    rig.manager.out_of_memory("c1")
    rig.manager.out_of_memory("unknown")
    assert rig.events == [TaskOOM("c1")]
    await rig.release()


# ---- deleting


async def test_delete_during_create_waits_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    monkeypatch.setattr(timeouts, "TASK_DELETE", 0.01)
    with pytest.raises(DeadlineExceeded, match="end of Create"):
        await rig.manager.delete("c1")
    monkeypatch.undo()
    deleting = asyncio.ensure_future(rig.manager.delete("c1"))
    rig.node.hang["Create"].set()
    await creating
    await deleting
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]
    await rig.release()


@pytest.mark.field_fault("3")
async def test_three_deletes_at_once(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    await asyncio.gather(*(rig.manager.delete("c1") for _ in range(3)))
    assert rig.node.calls.count("Delete c1") == 1
    await rig.release()


async def test_release_of_what_is_not_there(rig: Rig) -> None:
    await rig.manager.delete("nobody")
    await rig.manager.stop_shim("nobody")
