"""A pod on a small node of its own, for the tests of teardown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
