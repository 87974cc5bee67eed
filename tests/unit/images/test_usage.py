"""What containers have written: measured on demand, one measurement at a time, and not all the time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.images import service
from agent.snapshots.snapshotter import Usage
from agent.store.ledger import Intent, Kind
from tests.images import make_oci_layout
from tests.unit.images.node import ImageNode


class Measurements:
    """In the place of `Snapshotter.measure`: each ends when the test says so."""

    def __init__(self, node: ImageNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        monkeypatch.setattr(node.snapshots, "measure", self.measure)

    async def measure(self) -> dict[str, Usage]:
        self.begun += 1
        await self.may_end.wait()
        return {}

    async def settled(self) -> int:
        """How many have begun, when all that could has happened."""
        for _ in range(10):
            await asyncio.sleep(0)
        return self.begun


async def test_a_container_has_a_usage_once_it_was_measured(node: ImageNode, tmp_path: Path) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app": [{"file": b"x"}]}))
    await node.store.ledger.intend(Intent(Kind.SNAPSHOT, "c1", sandbox="p1", container="c1"))
    await node.images.prepare_rootfs(image.id, "c1")
    upper = tmp_path / "lib/snapshots/containers/c1/fs"
    (upper / "written").write_bytes(bytes(100_000))
    usage = node.images.usage("c1")
    assert usage is not None
    assert (usage.size, usage.inodes) == (0, 0), "a new one has nothing in it"
    async with asyncio.timeout(10):
        while (usage := node.images.usage("c1")) is None or not usage.size:
            await asyncio.sleep(0.01)
    assert 100_000 <= usage.size < 200_000
    assert usage.inodes == 1
    assert node.images.usage("c2") is None
    assert node.images.mountpoint == node.images.fs_info().mountpoint == str(tmp_path / "lib/snapshots")
    assert await node.releases.release_owned(container="c1") == []


async def test_one_measurement_at_a_time(node: ImageNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MEASURE_INTERVAL", 0.0)
    monkeypatch.setattr(service, "_MEASURE_REST", 0)
    measurements = Measurements(node, monkeypatch)
    for _ in range(3):
        node.images.usage("c1")
        node.images.fs_info()
        assert await measurements.settled() == 1
    measurements.may_end.set()
    await measurements.settled()
    node.images.usage("c1")
    assert await measurements.settled() == 2


async def test_a_long_measurement_is_followed_by_a_longer_rest(node: ImageNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MEASURE_INTERVAL", 0.0)
    monkeypatch.setattr(service, "_MEASURE_REST", 1_000_000)
    measurements = Measurements(node, monkeypatch)
    measurements.may_end.set()
    for _ in range(3):
        node.images.usage("c1")
        assert await measurements.settled() == 1


async def test_a_measurement_that_fails_is_made_again(node: ImageNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MEASURE_INTERVAL", 0.0)
    monkeypatch.setattr(service, "_MEASURE_REST", 0)
    failures = 0

    async def fail() -> dict[str, Usage]:
        nonlocal failures
        failures += 1
        raise OSError(5, "I/O error")

    monkeypatch.setattr(node.snapshots, "measure", fail)
    for expected in (1, 2):
        node.images.usage("c1")
        for _ in range(10):
            await asyncio.sleep(0)
        assert failures == expected
