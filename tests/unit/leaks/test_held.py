"""What the ledger owns: gone from the node, or not released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.leaks.finding import Finding, State
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, FakeNode

LOOKED_AT = [kind for kind in Kind if kind not in (Kind.LOG, Kind.CNI, Kind.EXEC)]


def key(node: FakeNode, kind: Kind) -> str:
    places = node.places
    paths = {
        Kind.NETNS: places.netns_dir / "cni-1",
        Kind.IPCNS: places.pins / "a-ipc",
        Kind.UTSNS: places.pins / "a-uts",
        Kind.SHM: places.sandboxes / SANDBOX / "shm",
        Kind.SANDBOX_DIR: places.sandboxes / SANDBOX,
        Kind.CGROUP: Path("/pods/a"),
    }
    return str(paths.get(kind, CONTAINER))


def make(node: FakeNode, kind: Kind) -> None:
    """What an entry of the kind holds."""
    places, name = node.places, key(node, kind)
    match kind:
        case Kind.NETNS | Kind.IPCNS | Kind.UTSNS:
            node.has(Path(name).parent)
            Path(name).touch()
        case Kind.SHM:
            node.mounts((Path(name), "tmpfs", "rw"))
        case Kind.CGROUP:
            node.cgroup(name)
        case Kind.SANDBOX_DIR:
            node.has(Path(name))
        case Kind.SHIM | Kind.TASK:
            node.has(places.bundles / name)
        case Kind.SNAPSHOT:
            node.has(places.snapshots / name)
        case Kind.FIFO:
            node.has(places.fifos / name)
        case Kind.INGEST:
            node.has(places.ingests / name)
        case Kind.LAYER_UNPACK:
            node.has(places.unpacks / name)


@pytest.mark.parametrize("kind", LOOKED_AT)
async def test_what_is_gone_from_the_node(node: FakeNode, kind: Kind) -> None:
    node.owns(kind, key(node, kind))
    finding = await node.only()
    assert (finding.kind.value, finding.what, finding.state, finding.owner) == (kind.value, key(node, kind), State.MISSING, "orlop")
    assert finding.since == NOW - 500


@pytest.mark.parametrize("kind", list(Kind))
async def test_what_is_there(node: FakeNode, kind: Kind) -> None:
    make(node, kind)
    node.owns(kind, key(node, kind))
    assert await node.found() == []


@pytest.mark.parametrize("kind", LOOKED_AT)
@pytest.mark.parametrize("state", [EntryState.INTENDED, EntryState.RELEASING])
async def test_what_need_not_be_there(node: FakeNode, kind: Kind, state: EntryState) -> None:
    node.owns(kind, key(node, kind), state)
    assert await node.found() == []


def make_pin(node: FakeNode) -> int:
    make(node, Kind.NETNS)
    return Path(key(node, Kind.NETNS)).stat().st_ino


async def test_another_namespace_at_the_place_of_a_pin(node: FakeNode) -> None:
    inode = make_pin(node)
    node.owns(Kind.NETNS, key(node, Kind.NETNS), inode=inode + 1)
    finding = await node.only()
    assert finding.state is State.MISSING
    assert f"{inode} instead of {inode + 1}" in finding.why


async def test_a_shim_that_has_ended(node: FakeNode) -> None:
    make(node, Kind.SHIM)
    started = node.shim(7, CONTAINER)
    entry = node.owns(Kind.SHIM, CONTAINER, pid=7, start_time=started)
    assert await node.found() == []
    node.ledger[:] = [replace(entry, data={"pid": 7, "start_time": started + 1})]
    assert "process, 7, has ended" in (await node.only()).why


async def test_a_zombie_has_ended(node: FakeNode) -> None:
    make(node, Kind.SHIM)
    node.owns(Kind.SHIM, CONTAINER, pid=7, start_time=node.shim(7, CONTAINER, state="Z"))
    assert await node.found() == [("shim", "missing", "orlop")]


async def test_a_shim_that_can_not_be_read_is_not_taken_for_dead(node: FakeNode) -> None:
    make(node, Kind.SHIM)
    (node.places.proc / "7/stat").mkdir(parents=True)
    node.owns(Kind.SHIM, CONTAINER, pid=7, start_time=3)
    assert [finding.state for finding in await node.audit()] == [State.UNKNOWN]


async def test_what_can_not_be_looked_at_is_unknown(node: FakeNode) -> None:
    node.owns(Kind.SANDBOX_DIR, f"/{'x' * 300}")  # ENAMETOOLONG, for root as well
    node.owns(Kind.SNAPSHOT, CONTAINER)
    assert await node.found() == [("sandbox_dir", "unknown", "orlop"), ("snapshot", "missing", "orlop")]


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_failed_release_of_any_kind_is_told(node: FakeNode, kind: Kind) -> None:
    entry = node.owns(kind, key(node, kind))
    node.ledger[:] = [entry.failed("busy", NOW, NOW)]
    assert await node.found() == [(kind.value, "pending", "orlop")]


async def test_a_release_that_failed(node: FakeNode) -> None:
    entry = node.owns(Kind.TASK, CONTAINER, EntryState.HELD, container=CONTAINER)
    node.ledger[:] = [entry.failed("can't unmount it", NOW - 30, NOW + 5)]
    finding: Finding = await node.only()
    assert (finding.state, finding.since, finding.what) == (State.PENDING, NOW - 30, CONTAINER)
    assert f"for container {CONTAINER} has failed 1 times: can't unmount it" in finding.why
    assert node.slept == []
