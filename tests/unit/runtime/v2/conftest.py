"""The two nodes: a `World` for the order of teardown, and a `Rig` for the task manager."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent import failpoints
from tests.unit.runtime.v2.rig import Rig, rig_in
from tests.unit.runtime.v2.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A pinned pod with two containers, c1 and the newer c2."""
    world = await World(tmp_path).build()
    yield world
    await world.supervisor.stop(0)


@pytest.fixture
async def task_world(tmp_path: Path) -> AsyncIterator[World]:
    """A pod whose sandbox is a task, with one container in its shim."""
    world = await World(tmp_path, ("pod", "c1"), pinned=False).build()
    yield world
    await world.supervisor.stop(0)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A manager that has loaded what there was, which is nothing."""
    async with rig_in(tmp_path) as rig:
        yield rig


@pytest.fixture(autouse=True)
def failpoints_off() -> Iterator[None]:
    yield
    failpoints.configure("")
