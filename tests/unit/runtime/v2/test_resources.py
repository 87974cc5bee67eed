"""Changing a task's limits, and asking its shim what it uses."""

from __future__ import annotations

import asyncio

import pytest

from agent import timeouts
from agent.errdefs import DeadlineExceeded, NotFound, Unknown
from tests.unit.runtime.v2.rig import Rig


async def test_limits_reach_the_engine(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    await task.update({"memory": {"limit": 1 << 26}}, {"why": "resize"})
    assert rig.node.shim("pod").containers["c1"].resources == {"memory": {"limit": 1 << 26}}


async def test_an_engine_that_refuses_says_why(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.fail["Update"] = Unknown("device or resource busy")
    with pytest.raises(Unknown, match="busy"):
        await task.update({}, {})


async def test_a_caller_that_leaves_doesnt_cut_an_update_in_two(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.hang["Update"] = asyncio.Event()
    updating = asyncio.ensure_future(task.update({"pids": {"limit": 5}}, {}))
    await rig.node.hanging.wait()
    updating.cancel()
    await asyncio.gather(updating, return_exceptions=True)
    rig.node.hang["Update"].set()
    container = rig.node.shim("pod").containers["c1"]
    while not container.resources:
        await asyncio.sleep(0)
    assert container.resources == {"pids": {"limit": 5}}


async def test_an_update_is_not_waited_for_without_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.hang["Update"] = asyncio.Event()
    monkeypatch.setattr(timeouts, "TASK_UPDATE", 0.01)
    with pytest.raises(DeadlineExceeded, match="Update of c1"):
        await task.update({}, {})


async def test_what_the_shim_says_of_use(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    task = await rig.create()
    assert await task.stats() == rig.node.stats
    monkeypatch.setattr(timeouts, "SHIM_PING", 0.01)
    rig.node.hang["Stats"] = asyncio.Event()
    with pytest.raises(DeadlineExceeded, match="Stats of c1"):
        await task.stats()
    rig.node.hang.clear()
    rig.node.shim("pod").containers.clear()
    with pytest.raises(NotFound):
        await task.stats()
