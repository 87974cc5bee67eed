"""The two looks."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from agent import metrics
from agent.leaks import Thing, audit
from agent.leaks.finding import State
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import CONTAINER, SANDBOX, STRANGER, FakeNode


def leaks(kind: str) -> float | None:
    return metrics.registry.get_sample_value("orlop_leaks", {"kind": kind, "owner": "orlop"})


async def test_a_clean_node_is_looked_at_once(node: FakeNode) -> None:
    node.has(node.places.bundles / CONTAINER)
    node.owns(Kind.TASK, CONTAINER, container=CONTAINER)
    assert await node.found() == []
    assert node.slept == []


async def test_a_node_that_never_had_an_agent_is_clean(node: FakeNode) -> None:
    assert not node.places.state_dir.exists()
    assert await node.found() == []


async def between(node: FakeNode, change: Callable[[], object]) -> list[tuple[str, str, str]]:
    """What is found if `change` happens between the two looks."""

    async def sleep(_: float) -> None:
        change()

    found = await audit(node.read, node.places, node.network, ask=node.ask, sleep=sleep, clock=lambda: node.now)
    return [(finding.kind.value, finding.state.value, finding.owner) for finding in found]


async def test_what_goes_meanwhile_is_no_leak(node: FakeNode) -> None:
    bundle = node.has(node.places.bundles / STRANGER)
    assert await between(node, bundle.rmdir) == []


async def test_what_is_written_down_meanwhile_is_no_leak(node: FakeNode) -> None:
    node.has(node.places.bundles / CONTAINER)
    assert await between(node, lambda: node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED)) == []


async def test_what_is_dropped_meanwhile_is_not_missing(node: FakeNode) -> None:
    node.owns(Kind.TASK, CONTAINER)
    assert await between(node, node.ledger.clear) == []


async def test_what_comes_meanwhile_has_not_been_seen_twice(node: FakeNode) -> None:
    node.has(node.places.bundles / STRANGER)
    node.has(node.places.bundles)
    assert await between(node, lambda: node.has(node.places.snapshots / STRANGER)) == [("bundle", "leaked", "orlop")]


async def test_a_number_that_came_to_mean_another_process_is_another_one(node: FakeNode) -> None:
    node.shim(7, STRANGER)

    def reuse() -> None:
        (node.places.proc / "7").rename(node.top / "old")
        node.shim(7, STRANGER, age=1)

    assert await between(node, reuse) == []


async def test_what_failed_meanwhile_is_told(node: FakeNode) -> None:
    node.has(node.places.bundles / STRANGER)
    entry = node.owns(Kind.CNI, SANDBOX)

    def fail() -> None:
        node.ledger[:] = [entry.failed("no such plugin", 1, 2)]

    assert await between(node, fail) == [("bundle", "leaked", "orlop"), ("cni", "pending", "orlop")]


async def test_a_place_that_can_not_be_read_is_unknown_and_hides_nothing_else(node: FakeNode) -> None:
    node.has(node.places.bundles.parent)
    node.places.bundles.touch()  # listing a file fails, also for root
    node.has(node.places.snapshots / STRANGER)
    found = {finding.kind: finding for finding in await node.audit()}
    assert found[Thing.BUNDLE].state is State.UNKNOWN
    assert found[Thing.BUNDLE].what == str(node.places.bundles)
    assert found[Thing.SNAPSHOT].state is State.LEAKED


async def test_no_proc_is_an_error(node: FakeNode) -> None:
    (node.places.proc / "stat").unlink()
    with pytest.raises(FileNotFoundError):
        await node.audit()


async def test_metrics_tell_the_last_audit(node: FakeNode) -> None:
    node.shim(7, STRANGER)
    node.owns(Kind.SNAPSHOT, CONTAINER)
    await node.audit()
    assert leaks("shim") == 1
    assert metrics.registry.get_sample_value("orlop_missing", {"kind": "snapshot"}) == 1
    node.ledger.clear()
    (node.places.proc / "7").rename(node.top / "old")
    await node.audit()
    assert leaks("shim") == 0
    assert metrics.registry.get_sample_value("orlop_missing", {"kind": "snapshot"}) == 0
    assert all(leaks(thing.value) == 0 for thing in Thing)


async def test_leaks_are_counted_by_owner_with_the_age_of_the_oldest(node: FakeNode) -> None:
    node.containerd()
    for pid, age in ((70, 400), (71, 700)):
        node.shim(pid, STRANGER, address=str(node.places.other_runtimes[0].socket), age=age)
    await node.audit()
    assert metrics.registry.get_sample_value("orlop_leaks", {"kind": "shim", "owner": "containerd"}) == 2
    ages = [("shim", "containerd", 700), ("shim", "orlop", 0), ("mount", "containerd", 0)]
    for kind, owner, age in ages:
        assert metrics.registry.get_sample_value("orlop_oldest_leak_seconds", {"kind": kind, "owner": owner}) == age


async def test_a_finding_as_json(node: FakeNode) -> None:
    node.shim(7, STRANGER)
    row = json.loads(json.dumps((await node.only()).to_json()))
    assert list(row) == ["kind", "what", "owner", "state", "sure", "since", "pins", "why", "releases"]
    assert (row["kind"], row["state"]) == ("shim", "leaked")
