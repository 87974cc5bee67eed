"""Directories of the agent's that have an owner each, or should have."""

from __future__ import annotations

import pytest

from agent.leaks.directories import PLACES, Place
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import SANDBOX, STRANGER, FakeNode

OWNERS = [
    ("bundle", Kind.SHIM), ("bundle", Kind.TASK), ("work_dir", Kind.SHIM), ("work_dir", Kind.TASK), ("engine_state", Kind.TASK),
    ("snapshot", Kind.SNAPSHOT), ("layer_unpack", Kind.LAYER_UNPACK), ("ingest", Kind.INGEST), ("sandbox_dir", Kind.SANDBOX_DIR),
    ("fifo", Kind.FIFO), ("fifo", Kind.EXEC),
]  # fmt: skip


def place(name: str) -> Place:
    [found] = [place for place in PLACES if place.kind.value == name]
    return found


@pytest.mark.parametrize("name", [place.kind.value for place in PLACES])
async def test_what_the_ledger_does_not_have_is_a_leak(node: FakeNode, name: str) -> None:
    left = node.has(place(name).directory(node.places) / STRANGER)
    finding = await node.only()
    assert (finding.kind.value, finding.what, finding.state.value, finding.owner) == (name, str(left), "leaked", "orlop")
    assert finding.since == left.stat().st_mtime


@pytest.mark.parametrize(("name", "kind"), OWNERS)
@pytest.mark.parametrize("state", [EntryState.INTENDED, EntryState.RELEASING])
async def test_what_has_an_owner_is_none(node: FakeNode, name: str, kind: Kind, state: EntryState) -> None:
    directory = place(name).directory(node.places)
    node.has(directory / SANDBOX)
    node.owns(kind, str(directory / SANDBOX) if kind is Kind.SANDBOX_DIR else SANDBOX, state)
    assert await node.found() == []


@pytest.mark.parametrize("name", [place.kind.value for place in PLACES])
async def test_what_is_not_named_as_ours_are_may_be_an_operators(node: FakeNode, name: str) -> None:
    node.has(place(name).directory(node.places) / "lost+found")
    assert (await node.only()).owner == "unknown"


async def test_every_place_has_an_owner_in_these_tests() -> None:
    assert {place.kind.value for place in PLACES} == {name for name, _ in OWNERS}


async def test_a_bundle_on_its_way_out(node: FakeNode) -> None:
    node.has(node.places.bundles / f".{SANDBOX}")
    assert await node.found() == [("bundle", "leaked", "orlop")]
    node.owns(Kind.SHIM, SANDBOX, EntryState.RELEASING)
    assert await node.found() == []


async def test_the_cache_of_an_engine_is_its_own(node: FakeNode) -> None:
    node.has(node.places.engine_state / ".cache")
    assert await node.found() == []


@pytest.mark.parametrize("name", ["{id}_sandbox:{id}.state", "{id}_sandbox:{id}.lock", "runsc-{id}.sock"])
async def test_files_that_runsc_keeps_are_their_containers(node: FakeNode, name: str) -> None:
    """Or the daemon would take gVisor's pods for leaks."""
    node.has(node.places.engine_state / name.format(id=SANDBOX))
    assert await node.found() == [("engine_state", "leaked", "orlop")]
    node.owns(Kind.TASK, SANDBOX, EntryState.INTENDED)
    assert await node.found() == []
