"""The order of release, which follows from the table of kinds."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from agent.store.kinds import KINDS, POSITION, RELEASE_ORDER, Kind, Scope

MUST_HOLD = [
    pytest.param(Kind.TASK, Kind.LOG, id="the log outlives the task: its last output"),
    pytest.param(Kind.TASK, Kind.FIFO, id="the FIFOs outlive the task"),
    pytest.param(Kind.LOG, Kind.FIFO, id="the copier lets go of the FIFOs before they are removed"),
    pytest.param(Kind.TASK, Kind.SHIM, id="tasks before their shim"),
    pytest.param(Kind.TASK, Kind.CNI, id="the network outlives the last process: task"),
    pytest.param(Kind.SHIM, Kind.CNI, id="the network outlives the last process: shim"),
    pytest.param(Kind.CNI, Kind.NETNS, id="the netns outlives its CNI DEL"),
    pytest.param(Kind.TASK, Kind.SANDBOX_DIR, id="hosts and resolv.conf outlive the task that mounts them"),
    pytest.param(Kind.SHM, Kind.SANDBOX_DIR, id="the tmpfs is unmounted before its directory is removed"),
    pytest.param(Kind.TASK, Kind.SHM, id="the tmpfs outlives the task that mounts it"),
    pytest.param(Kind.TASK, Kind.SNAPSHOT, id="the layer outlives the rootfs mount"),
    pytest.param(Kind.TASK, Kind.CGROUP, id="the pod cgroup outlives the container's"),
    *(pytest.param(Kind.TASK, kind, id=f"{kind} outlives its processes") for kind in (Kind.NETNS, Kind.IPCNS, Kind.UTSNS)),
]


@pytest.mark.parametrize(("first", "later"), MUST_HOLD)
def test_released_before(first: Kind, later: Kind) -> None:
    assert later in KINDS[first].uses, "an order that is only by chance isn't kept when a release fails"
    assert POSITION[first] < POSITION[later]


def test_every_kind_has_one_place() -> None:
    assert set(KINDS) == set(Kind)
    assert sorted(RELEASE_ORDER) == sorted(Kind)


def test_graph_has_no_cycle() -> None:
    reached = {kind: set(info.uses) for kind, info in KINDS.items()}
    for through, start, end in product(Kind, repeat=3):  # Warshall: `through` is the outer loop
        if through in reached[start] and end in reached[through]:
            reached[start].add(end)
    assert [kind for kind in Kind if kind in reached[kind]] == []


def test_users_come_before_what_they_use() -> None:
    for earlier, later in combinations(RELEASE_ORDER, 2):
        assert earlier not in KINDS[later].uses


def test_what_survives_a_reboot() -> None:
    on_disk = {kind for kind, info in KINDS.items() if info.scope is Scope.DISK}
    assert on_disk == {Kind.CNI, Kind.SNAPSHOT, Kind.INGEST, Kind.LAYER_UNPACK}


def test_stored_names_are_not_renamed() -> None:
    """They are in the databases of every node: a new name needs a migration."""
    assert {kind.value for kind in Kind} == {
        "task", "log", "fifo", "shim", "cni", "netns", "ipcns", "utsns", "shm", "cgroup", "snapshot", "sandbox_dir", "ingest",
        "layer_unpack", "exec",
    }  # fmt: skip
