"""Shims, `runc init`s and processes of containers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.leaks.finding import State, Thing
from agent.leaks.inits import CREATE_BUDGET
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import BOOTED, CONTAINER, NOW, SANDBOX, STRANGER, FakeNode

LEAK = ("shim", "leaked", "orlop")
INIT_LEAK = ("runc_init", "leaked", "orlop")


# ---- shims


async def test_a_shim_that_the_ledger_does_not_have(node: FakeNode) -> None:
    node.shim(7, STRANGER, age=60)
    finding = await node.only()
    assert (finding.kind, finding.state, finding.owner, finding.since) == (Thing.SHIM, State.LEAKED, "orlop", NOW - 60)
    assert finding.what == f"process 7 (containerd-shim-runc-v2 -id {STRANGER})"
    assert str(node.places.shim_sockets(STRANGER)[0]) in finding.pins


@pytest.mark.parametrize("kind", [Kind.SHIM, Kind.TASK])
@pytest.mark.parametrize("action", ["", "start", "delete"])
async def test_a_shim_that_is_intended_is_no_leak(node: FakeNode, kind: Kind, action: str) -> None:
    node.shim(7, SANDBOX, action)
    node.owns(kind, SANDBOX, EntryState.INTENDED)
    assert await node.found() == []


async def test_a_helper_that_nobody_waits_for(node: FakeNode) -> None:
    node.shim(7, STRANGER, "delete")
    assert "containerd-shim-runc-v2 delete" in (await node.only()).what


async def test_the_shim_of_another_runtime_is_not_ours(node: FakeNode) -> None:
    node.shim(7, STRANGER, address="/run/containerd/containerd.sock")
    assert await node.found() == [("shim", "unknown", "containerd")]


async def test_a_second_shim_of_one_sandbox(node: FakeNode) -> None:
    first = node.shim(7, SANDBOX)
    node.shim(8, SANDBOX)
    node.owns(Kind.SHIM, SANDBOX, pid=7, start_time=first)
    node.has(node.places.bundles / SANDBOX)
    finding = await node.only()
    assert finding.what.startswith("process 8 ")
    assert "knows process 7" in finding.why


async def test_a_helper_beside_the_shim_is_no_second_one(node: FakeNode) -> None:
    started = node.shim(7, SANDBOX)
    node.shim(8, SANDBOX, "start")
    node.owns(Kind.SHIM, SANDBOX, pid=7, start_time=started)
    node.has(node.places.bundles / SANDBOX)
    assert await node.found() == []


async def test_the_one_that_follows_a_dead_shim_is_no_leak(node: FakeNode) -> None:
    node.shim(8, SANDBOX)
    node.owns(Kind.SHIM, SANDBOX, pid=7, start_time=3)
    node.has(node.places.bundles / SANDBOX)
    assert await node.found() == [("shim", "missing", "orlop")]


async def test_a_shim_of_one_container_alone(node: FakeNode) -> None:
    node.shim(7, CONTAINER)
    started = node.shim(8, CONTAINER)
    node.owns(Kind.TASK, CONTAINER, container=CONTAINER, own_shim={"pid": 8, "start_time": started})
    node.has(node.places.bundles / CONTAINER)
    assert (await node.only()).what.startswith("process 7 ")


async def test_a_row_that_can_not_be_read_hides_nothing_else(node: FakeNode) -> None:
    (node.places.proc / "6/stat").mkdir(parents=True)  # reading a directory fails, also for root
    node.shim(7, STRANGER)
    assert await node.found() == [LEAK, ("process", "unknown", "unknown")]


# ---- runc init


def init(
    node: FakeNode, *, root: str = "", cgroup: str = "/", comm: str = "runc:[2:INIT]", age: float = 1000, container: str = CONTAINER
) -> None:
    fifo = f"{root or node.places.engine_state}/{container}/exec.fifo"
    node.process(9, "runc", "init", comm=comm, cgroup=cgroup, age=age, links=["/dev/null", fifo])


@pytest.mark.parametrize("comm", ["runc:[2:INIT]", "crun"])
async def test_an_init_whose_container_the_ledger_does_not_have(node: FakeNode, comm: str) -> None:
    init(node, comm=comm, age=1, cgroup=f"/pods/{CONTAINER}")
    finding = await node.only()
    assert (finding.kind, finding.state, finding.since) == (Thing.RUNC_INIT, State.LEAKED, NOW - 1)
    assert f"container {CONTAINER}" in finding.why
    assert f"/pods/{CONTAINER}" in finding.pins


@pytest.mark.parametrize("name", [STRANGER, f"cri-orlop-{STRANGER}.scope"])
async def test_an_init_without_a_fifo_is_known_by_the_pod_it_is_in(node: FakeNode, name: str) -> None:
    node.owns(Kind.CGROUP, "/pods/a", EntryState.INTENDED)
    node.process(9, "runc", "init", comm="runc:[1:CHILD]", cgroup=f"/pods/a/{name}")
    assert f"container {STRANGER}," in (await node.only()).why


@pytest.mark.parametrize("comm", ["runc:[2:INIT]", "crun"])
async def test_the_init_of_another_runtime_is_not_ours(node: FakeNode, comm: str) -> None:
    init(node, root="/run/docker/runtime-runc/moby", cgroup=f"/kubepods/{CONTAINER}", comm=comm)
    assert await node.found() == []


@pytest.mark.parametrize("state", list(EntryState))
async def test_an_init_that_is_being_created_is_no_leak(node: FakeNode, state: EntryState) -> None:
    init(node, age=CREATE_BUDGET - 1)
    node.owns(Kind.TASK, CONTAINER, state, container=CONTAINER)
    node.owns(Kind.SHIM, SANDBOX, EntryState.INTENDED, pid=7, start_time=3)
    node.has(node.places.bundles / CONTAINER)
    assert "runc_init" not in {kind for kind, _, _ in await node.found()}


async def test_crun_at_other_work_is_no_init(node: FakeNode) -> None:
    node.owns(Kind.CGROUP, "/pods/a", EntryState.INTENDED)
    node.process(9, "crun", "exec", cgroup=f"/pods/a/{STRANGER}")
    assert await node.found() == []


async def test_an_init_is_told_once_though_it_is_a_process_in_a_rootfs_too(node: FakeNode) -> None:
    fifo = node.places.engine_state / STRANGER / "exec.fifo"
    upper = node.places.snapshots / STRANGER / "fs"
    node.process(9, "runc", "init", comm="runc:[2:INIT]", links=[fifo], mnt=3, upper=upper)
    assert await node.found() == [INIT_LEAK]


async def test_an_init_that_outlived_its_shim(node: FakeNode) -> None:
    init(node, age=CREATE_BUDGET + 1)
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, container=CONTAINER, shim=SANDBOX)
    node.owns(Kind.SHIM, SANDBOX, EntryState.RELEASING, pid=7, start_time=3)
    assert await node.found() == [INIT_LEAK]


@pytest.mark.parametrize("known", [True, False])
async def test_an_init_that_waits_long_while_its_shim_may_live_is_unknown(node: FakeNode, known: bool) -> None:
    init(node, age=CREATE_BUDGET + 1)
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, container=CONTAINER)
    started = node.shim(7, SANDBOX)
    data = {"pid": 7, "start_time": started} if known else {}
    node.ledger.append(replace(node.owns(Kind.SHIM, SANDBOX, EntryState.INTENDED), data=data))
    finding = await node.only()
    assert (finding.kind, finding.state) == (Thing.RUNC_INIT, State.UNKNOWN)
    assert "has waited 121 s" in finding.why


async def test_an_init_whose_shim_can_not_be_read_is_unknown(node: FakeNode) -> None:
    init(node)
    (node.places.proc / "7/stat").mkdir(parents=True)
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, container=CONTAINER)
    node.owns(Kind.SHIM, SANDBOX, EntryState.INTENDED, pid=7, start_time=3)
    assert ("runc_init", "unknown", "orlop") in await node.found()
    assert INIT_LEAK not in await node.found()


async def test_an_init_whose_descriptors_can_not_be_read_is_unknown(node: FakeNode) -> None:
    node.process(9, "runc", "init", comm="runc:[2:INIT]")
    (node.places.proc / "9/fd").rmdir()
    (node.places.proc / "9/fd").touch()
    assert await node.found() == [("runc_init", "unknown", "unknown")]


# ---- processes of containers


async def test_a_process_in_a_rootfs_that_the_ledger_does_not_have(node: FakeNode) -> None:
    for pid, age in ((20, 30), (21, 20)):
        node.process(pid, "sleep", mnt=3, upper=node.places.snapshots / STRANGER / "fs", age=age)
    finding = await node.only()
    assert (finding.kind, finding.state, finding.since) == (Thing.PROCESS, State.LEAKED, NOW - 30)
    assert finding.what == f"processes of container {STRANGER}"
    assert finding.why.startswith("process 20 (sleep), process 21 (sleep) still in the rootfs")


@pytest.mark.parametrize("kind", [Kind.SNAPSHOT, Kind.TASK])
async def test_the_processes_of_a_container_are_no_leak(node: FakeNode, kind: Kind) -> None:
    node.process(20, "sleep", mnt=3, upper=node.places.snapshots / CONTAINER / "fs")
    node.process(21, "sleep", mnt=4, upper=node.top / "containerd/snapshots/7/fs")
    node.process(22, "sleep", mnt=5)
    node.owns(kind, CONTAINER, EntryState.INTENDED, container=CONTAINER)
    assert await node.found() == []


async def test_a_process_that_can_not_be_looked_at_is_unknown(node: FakeNode) -> None:
    node.process(20, "sleep")
    (node.places.proc / "20/ns/mnt").unlink()
    (node.places.proc / "20/ns/mnt").touch()
    assert await node.found() == [("process", "unknown", "unknown")]


async def test_a_process_that_ended_meanwhile_is_nothing(node: FakeNode) -> None:
    node.process(20, "sleep", mnt=3)
    (node.places.proc / "20/mountinfo").unlink()
    node.process(21, "sleep")
    (node.places.proc / "21/ns/mnt").unlink()
    (node.places.proc / "22").mkdir()
    assert await node.found() == []


async def test_times_are_from_the_boot(node: FakeNode) -> None:
    node.shim(7, STRANGER, age=NOW - BOOTED)
    assert (await node.only()).since == BOOTED
