"""What isn't known is not taken for dead: nothing is taken down before it is known who lives, nor because the agent itself can't ask."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import failpoints, timeouts
from agent.errdefs import Unavailable
from agent.linux.processes import Completed
from agent.runtime.v2 import bootstrap, load, manager
from agent.runtime.v2.shim import ShimState
from agent.runtime.v2.shim_log import ShimLog
from agent.store.ledger import Kind, State
from tests.unit.runtime.v2.rig import Rig, until
from tests.unit.runtime.v2.sim import SimProcess

NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


class Trouble:
    """Stands in for a function of the node and fails until it is `over`; counts its calls."""

    def __init__(self, works: Callable[..., Any]) -> None:
        self.calls = 0
        self.over = False
        self._works = works

    async def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if not self.over:
            raise NO_DESCRIPTOR
        return await self._works(*arguments)


async def pod_with_two(rig: Rig) -> None:
    await rig.pinned()
    await rig.create("c1")
    await rig.create("c2")


async def test_nothing_is_released_before_the_tasks_are_loaded(rig: Rig) -> None:
    """A task or shim that isn't known yet is not one that is gone: its ledger entry was dropped, and all of it stayed for ever."""
    await pod_with_two(rig)
    await rig.restart(during=False)
    failures = await rig.releases.release_owned(sandbox="pod")
    assert {str(resource.id): type(error) for resource, error in failures if isinstance(error, Unavailable)} == {
        "task c1": Unavailable,
        "task c2": Unavailable,
    }
    with pytest.raises(Unavailable, match="not known yet"):
        await rig.manager.stop_shim("pod")
    with pytest.raises(Unavailable, match="not known yet"):
        rig.manager.find("c1")
    await rig.load()
    await rig.release()


@pytest.mark.field_fault("6")
async def test_a_delete_meanwhile_does_not_take_a_shim_for_dead_that_was_not_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await pod_with_two(rig)
    asked, looked = asyncio.Event(), asyncio.Event()
    really_open = rig.node.open

    async def open_late(pid: int, start_time: int | None = None) -> Any:
        asked.set()
        await looked.wait()
        return await really_open(pid, start_time)

    monkeypatch.setattr(rig.node, "open", open_late)
    await rig.restart(during=False)
    loading = asyncio.ensure_future(rig.load())
    await asked.wait()
    with pytest.raises(Unavailable):
        await rig.manager.delete("c1")
    looked.set()
    await loading
    await rig.manager.delete("c1")
    assert rig.node.shim("pod").process.alive()
    assert rig.manager.get("c2").exited is None
    assert rig.node.shim("pod").containers["c2"].process.alive()
    await rig.release()


async def test_a_node_on_which_no_process_can_be_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is known, and the daemon, which is told so, ends."""
    await pod_with_two(rig)
    trouble = Trouble(rig.node.open)
    monkeypatch.setattr(rig.node, "open", trouble)
    with pytest.raises(OSError, match="Too many"):
        await rig.restart()
    with pytest.raises(Unavailable):
        await rig.manager.delete("c1")
    trouble.over = True
    await rig.load()
    assert rig.node.commands == []
    await rig.release()


async def test_a_shim_that_can_not_be_dialled_for_lack_of_descriptors_is_not_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.0)
    monkeypatch.setattr(manager, "_RETRY", 0.01)
    await pod_with_two(rig)
    trouble = Trouble(rig.node.connect)
    monkeypatch.setattr(rig.node, "connect", trouble)
    await rig.restart()
    await until(lambda: trouble.calls > 4)
    shim = rig.node.shim("pod")
    assert shim.process.alive()
    assert rig.manager.get("c1").shim.state is ShimState.LOST
    trouble.over = True
    await until(lambda: rig.node.calls.count("Wait c1") == 1)
    shim.containers["c1"].stop(5)
    assert (await rig.manager.get("c1").wait()).status == 5
    assert rig.manager.get("c2").exited is None
    await rig.release()


async def test_nor_is_one_that_drops_us_then(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.0)
    monkeypatch.setattr(manager, "_RETRY", 0.01)
    trouble = Trouble(rig.node.connect)
    trouble.over = True
    monkeypatch.setattr(rig.node, "connect", trouble)
    rig.boot()
    await rig.load()
    await pod_with_two(rig)
    trouble.over = False
    rig.node.shim("pod").hang_up()
    await until(lambda: trouble.calls > 4)
    trouble.over = True
    await until(lambda: rig.manager.get("c1").shim.state is ShimState.CONNECTED)
    assert rig.manager.get("c1").exited is None
    await rig.release()


async def test_nor_is_one_whose_end_can_not_be_waited_for_then(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for a pidfd needs room in the kernel's own tables."""
    monkeypatch.setattr(manager, "_RETRY", 0.01)
    tries = itertools.count()
    really_wait = SimProcess.wait

    async def wait(process: SimProcess) -> None:
        if next(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        await really_wait(process)

    monkeypatch.setattr(SimProcess, "wait", wait)
    await pod_with_two(rig)
    await until(lambda: next(tries) > 3)
    rig.node.shim("pod").die()
    assert (await rig.manager.get("c1").wait()).reason == "Unknown"
    await rig.release()


@pytest.mark.field_fault("6")
@pytest.mark.parametrize("what", ["its log", "its bootstrap"])
async def test_a_shim_that_can_not_be_looked_at_at_first(rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Its exits were never noticed then, nor its death."""
    monkeypatch.setattr(manager, "_RETRY", 0.01)
    await pod_with_two(rig)
    tries = itertools.count()

    def fails_twice() -> None:
        if next(tries) < 2:
            raise NO_DESCRIPTOR

    really_open, really_read = ShimLog.open, bootstrap.read

    async def open_log(shim_id: str, fifo: Path) -> ShimLog:
        fails_twice()
        return await really_open(shim_id, fifo)

    def read(bundle: Path) -> Any:
        fails_twice()
        return really_read(bundle)

    if what == "its log":
        monkeypatch.setattr(ShimLog, "open", open_log)
    else:
        monkeypatch.setattr(bootstrap, "read", read)
    await rig.restart()
    assert next(tries) > 0
    await until(lambda: rig.node.calls.count("Wait c1") == 1)
    rig.node.shim("pod").containers["c1"].stop(5)
    assert (await rig.manager.get("c1").wait()).status == 5
    rig.node.shim("pod").die()
    assert (await rig.manager.get("c2").wait()).reason == "Unknown"
    await rig.release()


@pytest.mark.field_fault("6")
async def test_a_pid_that_can_not_be_looked_at_at_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon died right after Create was answered, and its successor lacks a descriptor for a moment."""
    monkeypatch.setattr(load, "_RETRY", 0.01)
    await rig.pinned()
    failpoints.configure("runtime.task.hold=hang")
    creating = asyncio.ensure_future(rig.create())
    await until(lambda: "Wait c1" in rig.node.calls)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await creating
    failpoints.configure("")
    pid = rig.node.shim("pod").containers["c1"].process.pid
    really_open = rig.node.open
    tries = itertools.count()

    async def open_(wanted: int, start_time: int | None = None) -> Any:
        if wanted == pid and next(tries) < 2:
            raise NO_DESCRIPTOR
        return await really_open(wanted, start_time)

    monkeypatch.setattr(rig.node, "open", open_)
    await rig.restart()
    await until(lambda: "Wait c1" in rig.node.calls)
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert (held.state, held.data["pid"]) == (State.HELD, pid)
    rig.node.shim("pod").containers["c1"].stop(5)
    assert (await rig.manager.get("c1").wait()).status == 5
    await rig.release()


async def test_a_replacement_that_neither_starts_nor_can_be_cleaned_up_at_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watched over it: every create in the pod waited for it, and failed."""
    monkeypatch.setattr(manager, "_RETRY", 0.01)
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.05)
    await rig.pinned()
    rig.node.start_says = Completed(1, b"", b"not now")
    failpoints.configure("cleanup.shim_dead=2*error(not now)")
    rig.node.shim("pod").die()
    await until(lambda: rig.node.commands.count("start pod") > 1 and rig.manager._shims["pod"].state is ShimState.CONNECTED)
    await rig.create()
    await rig.release()


class Held:
    """A process by a pidfd that can be given back; then it is an error to use it."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        if self._closed:
            raise ValueError("was closed")
        return getattr(self._process, name)

    async def wait(self) -> None:  # whatever is wrong shows when it is awaited, as with the real one
        await self.__getattr__("wait")()

    def close(self) -> None:
        self._closed = True


async def test_a_mute_shim_that_is_killed_while_it_is_asked_gets_a_successor(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its watcher went on with the pidfd that the cleanup had just given back, and died of it."""
    really_open = rig.node.open

    async def open_(pid: int, start_time: int | None = None) -> Any:
        process = await really_open(pid, start_time)
        return None if process is None else Held(process)

    monkeypatch.setattr(rig.node, "open", open_)
    monkeypatch.setattr(timeouts, "SHIM_LOAD", 0.2)
    await pod_with_two(rig)
    shim = rig.node.shim("pod")
    shim.mute = True
    loading = asyncio.ensure_future(rig.restart())
    await until(lambda: rig.node.calls.count("Connect pod") == 2)
    await loading
    await rig.manager.kill_shim("pod")
    await until(lambda: rig.node.shim("pod") is not shim and rig.manager._shims["pod"].state is ShimState.CONNECTED)
    await rig.release()
