"""Mounts, namespaces, cgroups, sockets and addresses."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.leaks.finding import Thing
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, STRANGER, FakeChain, FakeLease, FakeNode

# ---- mounts


async def test_a_rootfs_that_is_still_mounted(node: FakeNode) -> None:
    upper = node.places.snapshots / STRANGER / "fs"
    rootfs = node.places.bundles / STRANGER / "rootfs"
    node.mounts((rootfs, "overlay", f"rw,lowerdir=/l,upperdir={upper},workdir=/w"))
    finding = await node.only()
    assert (finding.kind, finding.what, finding.state.value) == (Thing.MOUNT, str(rootfs), "leaked")
    assert f"container {STRANGER}" in finding.why
    assert finding.pins == str(upper)


async def test_any_mount_below_our_directories_has_an_owner(node: FakeNode) -> None:
    """Beside the things of ours it may be an operator's."""
    node.mounts((node.places.snapshots / STRANGER / "fs", "overlay", "rw"), (node.places.state_dir / "x", "tmpfs", "rw"))
    assert await node.found() == [("mount", "leaked", "orlop"), ("mount", "leaked", "unknown")]


async def test_mounts_with_an_owner(node: FakeNode) -> None:
    shm = node.places.sandboxes / SANDBOX / "shm"
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, container=CONTAINER)
    node.owns(Kind.SHM, str(shm), EntryState.INTENDED)
    node.mounts(
        (node.places.bundles / CONTAINER / "rootfs", "overlay", "rw"),
        (node.places.bundles / f".{CONTAINER}" / "rootfs", "overlay", "rw"),
        (shm, "tmpfs", "rw"),
    )
    assert await node.found() == []


async def test_mounts_that_are_the_operators_or_somebody_elses(node: FakeNode) -> None:
    places = node.places
    operators = [places.state_dir, places.root_dir, places.root_dir / "content", places.root_dir / "snapshots"]
    others = [node.top / "run/containerd/rootfs", node.top / "run/orlop-two/v2/k8s.io/x/rootfs"]
    node.mounts(*((path, "ext4", "rw") for path in operators + others))
    assert await node.found() == []


async def test_a_link_on_the_way_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    node = FakeNode(tmp_path / "link")
    shm = "run/orlop/sandboxes/a/shm"
    node.has(tmp_path / "link" / shm)
    node.owns(Kind.SHM, str(tmp_path / "link" / shm))
    node.mounts((tmp_path / "real" / shm, "tmpfs", "rw"), (tmp_path / "real/run/orlop/x", "tmpfs", "rw"))
    assert [finding.what for finding in await node.audit() if finding.kind is Thing.MOUNT] == [str(tmp_path / "real/run/orlop/x")]


# ---- pins


@pytest.mark.parametrize(("name", "kind"), [(f"{SANDBOX}-ipc", Kind.IPCNS), (f"{SANDBOX}-uts", Kind.UTSNS)])
async def test_a_pin_of_ours(node: FakeNode, name: str, kind: Kind) -> None:
    pin = node.has(node.places.pins) / name
    pin.touch()
    node.mounts((pin, "nsfs", "rw"))
    assert await node.found() == [(kind.value, "leaked", "orlop")]
    node.owns(kind, str(pin), EntryState.INTENDED)
    assert await node.found() == []


def network_pin(node: FakeNode, name: str = "cni-1") -> Path:
    pin = node.has(node.places.netns_dir) / name
    pin.touch()
    return pin


async def test_a_network_namespace_that_nobody_has(node: FakeNode) -> None:
    pin = network_pin(node)
    finding = await node.only()
    assert (finding.kind, finding.what, finding.owner) == (Thing.NETNS, str(pin), "unknown")
    assert "no process in it" in finding.why


async def test_a_network_namespace_with_an_owner_or_of_another_name(node: FakeNode) -> None:
    node.owns(Kind.NETNS, str(network_pin(node)), EntryState.INTENDED)
    network_pin(node, "blue")
    assert await node.found() == []


async def test_a_network_namespace_with_a_process_in_it(node: FakeNode) -> None:
    node.process(5, "vm", net=network_pin(node).stat().st_ino)
    assert await node.found() == []


async def test_the_nodes_init_may_be_beyond_our_rights(node: FakeNode) -> None:
    node.process(1, "init")
    for name in ("net", "mnt"):
        (node.places.proc / "1/ns" / name).unlink()
        (node.places.proc / "1/ns" / name).touch()
    network_pin(node)
    assert await node.found() == [("netns", "leaked", "unknown")]


async def test_a_network_namespace_of_which_it_can_not_be_told(node: FakeNode) -> None:
    network_pin(node)
    (node.places.proc / "6/stat").mkdir(parents=True)
    assert ("netns", "unknown", "unknown") in await node.found()
    assert ("netns", "leaked", "unknown") not in await node.found()


def containerd(node: FakeNode) -> None:
    node.containerd(problem="it hangs")


def foreign_shim(node: FakeNode) -> None:
    node.shim(70, SANDBOX, address="/run/k3s/containerd.sock", age=1)


def conmon(node: FakeNode) -> None:
    node.process(70, "/usr/bin/conmon", "-c", SANDBOX, age=1)


def second_orlop(node: FakeNode) -> None:
    node.process(70, "python3", "-m", "agent.cli.main", "serve")


@pytest.mark.parametrize("sign", [containerd, foreign_shim, conmon, second_orlop])
async def test_beside_a_runtime_that_does_not_answer_what_looks_the_same_is_unknown(node: FakeNode, sign: object) -> None:
    os.utime(network_pin(node), (NOW - 1000,) * 2)
    lease = node.has(node.top / "networks") / "x"
    lease.touch()
    os.utime(lease, (NOW - 1000,) * 2)
    node.leases.append(FakeLease("10.1.0.5", STRANGER, path=lease))
    assert await node.found() == [("netns", "leaked", "unknown"), ("cni", "leaked", "unknown")]
    assert callable(sign)
    sign(node)
    assert await node.found() == [("netns", "unknown", "unknown"), ("cni", "unknown", "unknown")]


async def test_our_own_daemon_is_no_other_runtime(node: FakeNode) -> None:
    node.process(70, "/usr/bin/orlop", "serve")
    network_pin(node)
    node.cgroup(f"/orlop-shims/{STRANGER}")
    assert await node.found() == []  # the pin is young
    node.served = True
    assert len(await node.found()) == 2


# ---- addresses


@pytest.mark.parametrize("sandbox", [STRANGER, ""])
async def test_an_address_of_a_sandbox_that_the_ledger_does_not_have(node: FakeNode, sandbox: str) -> None:
    node.owns(Kind.CNI, SANDBOX, EntryState.INTENDED)
    node.leases += [FakeLease("10.1.0.4", SANDBOX), FakeLease("10.1.0.5", sandbox)]
    finding = await node.only()
    assert (finding.kind, finding.what, finding.owner) == (Thing.CNI, "address 10.1.0.5 of network pods", "unknown")


async def test_what_the_ledger_once_had_is_ours(node: FakeNode) -> None:
    pin = network_pin(node)
    node.leases.append(FakeLease("10.1.0.5", STRANGER))
    node.chains.append(FakeChain(SANDBOX))
    kinds = ("netns", "cni", "chain")
    assert await node.found() == [(kind, "leaked", "unknown") for kind in kinds]
    node.remembers = {str(pin), STRANGER, SANDBOX}
    assert [(one.kind.value, one.owner, one.sure) for one in await node.audit()] == [(kind, "orlop", "certain") for kind in kinds]


async def test_a_journal_that_can_not_be_read_leaves_it_nobodys(node: FakeNode) -> None:
    network_pin(node)
    node.remembers = None
    assert await node.found() == [("netns", "leaked", "unknown")]


# ---- cgroups


@pytest.mark.field_fault("15")
async def test_the_cgroup_of_a_shim(node: FakeNode) -> None:
    node.cgroup(f"/orlop-shims/{STRANGER}")
    node.cgroup(f"/orlop-shims/{SANDBOX}")
    node.cgroup(f"/orlop-shims/{CONTAINER}")
    node.cgroup("/orlop-shims/log-copier")
    node.owns(Kind.SHIM, SANDBOX, EntryState.INTENDED)
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED)
    node.process(30, "virtiofsd", cgroup=f"/orlop-shims/{STRANGER}/x")
    finding = await node.only()
    assert (finding.kind, finding.what) == (Thing.CGROUP, f"/orlop-shims/{STRANGER}")
    assert "in it: process 30 (virtiofsd)" in finding.why


async def test_the_cgroup_of_a_pod(node: FakeNode) -> None:
    node.cgroup(f"/orlop-pods/pod{STRANGER}/{CONTAINER}")
    node.cgroup(f"/orlop-pods/pod{SANDBOX}")
    node.cgroup("/orlop-pods/something")
    node.owns(Kind.CGROUP, f"/orlop-pods/pod{SANDBOX}", EntryState.INTENDED)
    assert [finding.what for finding in await node.audit()] == [f"/orlop-pods/pod{STRANGER}"]


async def test_a_pod_is_not_taken_for_a_container_of_its_parent(node: FakeNode) -> None:
    node.cgroup(f"/orlop-pods/pod{STRANGER}")
    node.owns(Kind.CGROUP, "/orlop-pods", EntryState.INTENDED)
    assert "the cgroup of a pod that" in (await node.only()).why


@pytest.mark.field_fault("15")
@pytest.mark.parametrize("name", [STRANGER, f"cri-orlop-{STRANGER}.scope"])
async def test_the_cgroup_of_a_container_in_a_pod_of_ours(node: FakeNode, name: str) -> None:
    for path in (f"/kube/pod1/{name}", f"/kube/pod1/{CONTAINER}", "/kube/pod1/other", f"/kube/pod2/{STRANGER}"):
        node.cgroup(path)
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, cgroup=f"/kube/pod1/{CONTAINER}")
    finding = await node.only()
    assert (finding.what, "no process is in it" in finding.why) == (f"/kube/pod1/{name}", True)


async def test_a_cgroup_of_another_runtime_where_ours_are(node: FakeNode) -> None:
    """Clients of both may name the same parent. What it has not is ours only if the journal says so."""
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, cgroup=f"/kube/{CONTAINER}")
    node.cgroup(f"/kube/cri-containerd-{SANDBOX}.scope")
    assert (await node.only()).owner == "containerd"
    node.cgroup(f"/kube/{STRANGER}")
    os.utime(node.places.cgroup_root / f"kube/{STRANGER}", (NOW - 1000,) * 2)
    os.utime(node.places.cgroup_root / f"kube/cri-containerd-{SANDBOX}.scope", (NOW - 1000,) * 2)
    node.containerd(STRANGER, SANDBOX)
    assert await node.found() == []
    node.containerd(SANDBOX)
    assert await node.found() == [("cgroup", "leaked", "unknown")]
    node.remembers = {STRANGER}
    assert await node.found() == [("cgroup", "leaked", "orlop")]


async def test_what_is_in_a_cgroup_beside_those_of_shims_is_somebodys(node: FakeNode) -> None:
    """The settings may name one that is systemd's."""
    node.cgroup("/orlop-shims/ssh.service")
    assert await node.found() == []


async def test_cgroups_of_every_hierarchy(node: FakeNode) -> None:
    """On v1 a cgroup can be left in some only."""
    root = node.places.cgroup_root
    (root / "cgroup.controllers").unlink()
    for hierarchy in ("cpu", "memory"):
        node.has(root / hierarchy)
        (root / hierarchy / "cgroup.procs").touch()
    node.has(root / "memory/orlop-shims" / STRANGER)
    node.owns(Kind.CGROUP, "/pods/here")
    node.owns(Kind.CGROUP, "/pods/gone")
    node.has(root / "cpu/pods/here")
    assert [(finding.what, finding.state.value) for finding in await node.audit()] == [
        (f"/orlop-shims/{STRANGER}", "leaked"),
        ("/pods/gone", "missing"),
    ]


# ---- sockets


def stale_socket(node: FakeNode, shim: str) -> Path:
    """And that of its profiler."""
    service, profiler = node.places.shim_sockets(shim)
    node.has(service.parent)
    os.mknod(service, stat.S_IFSOCK | 0o600)
    os.mknod(profiler, stat.S_IFSOCK | 0o600)
    return service


async def test_a_socket_that_nobody_can_have(node: FakeNode) -> None:
    path = stale_socket(node, STRANGER)
    (path.parent / "file").touch()
    assert {finding.what for finding in await node.audit()} == set(map(str, node.places.shim_sockets(STRANGER)))
    assert await node.found() == [("socket", "leaked", "unknown")] * 2


@pytest.mark.parametrize("kind", [Kind.SHIM, Kind.TASK])
async def test_the_socket_of_a_shim_in_the_ledger(node: FakeNode, kind: Kind) -> None:
    stale_socket(node, SANDBOX)
    node.owns(kind, SANDBOX, EntryState.INTENDED)
    assert await node.found() == []


async def test_the_socket_of_a_leaked_shim_is_in_use(node: FakeNode) -> None:
    stale_socket(node, STRANGER)
    node.shim(7, STRANGER)
    assert await node.found() == [("shim", "leaked", "orlop")]


async def test_a_socket_is_known_by_what_else_was_left(node: FakeNode) -> None:
    """Also beside another runtime."""
    node.containerd()
    stale_socket(node, STRANGER)
    node.has(node.places.bundles / f".{STRANGER}")
    assert await node.found() == [("bundle", "leaked", "orlop"), *[("socket", "leaked", "orlop")] * 2]
