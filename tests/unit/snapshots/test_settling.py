"""Layers between their commit and the disk."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.linux import libc
from agent.snapshots import settling
from agent.snapshots.layers import RECORD, Layer
from agent.snapshots.snapshotter import Snapshotter
from tests.images import digest, gzipped, layer_tar
from tests.unit.snapshots.fakes import InProcessRunner


class Node:
    """Snapshotters of one machine, one after the other; `synced` tells at each syncfs what records said then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: list[list[bool]] = []
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").touch()
        (root / "proc/sys/kernel/random").mkdir(parents=True)

    def records(self) -> list[bool]:
        """Of each layer whether it is said to be on disk."""
        return ["boot" not in json.loads(path.read_text()) for path in sorted(self.root.glob(f"s/layers/*/{RECORD}"))]

    def sync(self, descriptor: int) -> None:
        self.synced.append(self.records())

    async def start(self, boot: str) -> tuple[Snapshotter, list[str]]:
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{boot}\n")
        snapshots = Snapshotter(self.root / "s", InProcessRunner(), proc=self.root / "proc")
        return snapshots, await snapshots.open(())

    async def commit(self, snapshots: Snapshotter, name: str) -> Layer:
        tar = layer_tar({name: b""})
        (self.root / name).write_bytes(gzipped(tar))
        return await snapshots.commit(await snapshots.unpack(name, self.root / name, digest(tar)), "")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path)
    monkeypatch.setattr(libc, "syncfs", node.sync)
    return node


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_layer_is_on_disk_soon(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PAUSE", 0.0)
    snapshots, _ = await node.start("first")
    await node.commit(snapshots, "a")
    await until(lambda: node.records() == [True])
    assert node.synced == [[False]]  # in this order
    await node.commit(snapshots, "b")
    await until(lambda: node.records() == [True, True])
    await snapshots.close(5)
    again, removed = await node.start("second")
    assert (len(again.layers()), removed) == (2, [])
    await again.close(5)


async def test_who_cannot_wait_does_not(node: Node) -> None:
    snapshots, _ = await node.start("first")
    await snapshots.sync()
    assert node.synced == []
    await node.commit(snapshots, "a")
    await node.commit(snapshots, "b")
    assert node.records() == [False, False]
    await snapshots.sync()
    assert node.records() == [True, True]
    await snapshots.close(5)


async def test_a_daemon_that_comes_back_in_the_same_boot_goes_on(node: Node) -> None:
    """Containers may stand on what it finds."""
    snapshots, _ = await node.start("first")
    layer = await node.commit(snapshots, "a")
    await snapshots.close(5)
    again, removed = await node.start("first")
    assert (again.layers(), removed) == ([layer], [])
    assert node.records() == [False]
    await again.sync()
    assert node.records() == [True]
    await again.close(5)


async def test_a_machine_that_lost_power_is_without_it(node: Node) -> None:
    snapshots, _ = await node.start("first")
    safe = await node.commit(snapshots, "a")
    await snapshots.sync()
    lost = await node.commit(snapshots, "b")
    await snapshots.close(5)
    again, removed = await node.start("second")
    assert (again.layers(), removed) == ([safe], [f"layers/{lost.chain_id[7:]}"])
    assert await node.commit(again, "b")
    await again.close(5)


async def test_a_layer_that_is_deleted_before(node: Node) -> None:
    snapshots, _ = await node.start("first")
    layer = await node.commit(snapshots, "a")
    await snapshots.delete_layer(layer.chain_id)
    await snapshots.sync()
    assert node.synced == []
    await snapshots.close(5)


async def test_a_layer_that_comes_again_while_the_disk_is_at_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's files were synced, the second one's not."""
    began, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        began.set()
        go_on.wait()

    monkeypatch.setattr(libc, "syncfs", slow)
    snapshots, _ = await node.start("first")
    layer = await node.commit(snapshots, "a")
    syncing = asyncio.create_task(snapshots.sync())
    await until(began.is_set)
    await snapshots.delete_layer(layer.chain_id)
    await node.commit(snapshots, "a")
    go_on.set()
    await syncing
    assert node.records() == [False]
    await snapshots.sync()
    assert node.records() == [True]
    await snapshots.close(5)


async def test_a_disk_that_fails(node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(settling, "PAUSE", 0.0)
    failed = 0

    def fail(descriptor: int) -> None:
        nonlocal failed
        failed += 1
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(libc, "syncfs", fail)
    snapshots, _ = await node.start("first")
    layer = await node.commit(snapshots, "a")
    await until(lambda: "layers not synced" in capsys.readouterr().out)
    assert (snapshots.layer(layer.chain_id), node.records(), failed) == (layer, [False], 1)
    monkeypatch.setattr(libc, "syncfs", node.sync)
    await node.commit(snapshots, "b")
    await until(lambda: node.records() == [True, True])
    await snapshots.close(5)
