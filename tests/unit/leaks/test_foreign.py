"""Things of other runtimes: leaks only when that runtime says that it doesn't have what they are for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errdefs import Unavailable
from agent.leaks import foreign
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.foreign import Answer, Foreign, Life
from agent.leaks.owners import CRI, KNOWN, TASKS, Runtime
from agent.leaks.targets import CgroupTarget, ChainTarget, FileTarget, ProcessTarget
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from cri.api import api_pb2 as cri
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, STRANGER, FakeChain, FakeLease, FakeNode, FakeResult
from tests.unit.leaks.test_node_objects import network_pin, stale_socket

UID = "3fb5d6a0-8e8e-4f2e-9c43-6d1f3a3c6a55"
POD = f"/kubepods/burstable/pod{UID}"


def old(path: Path, age: float = 1000) -> Path:
    os.utime(path, (NOW - age,) * 2, follow_symlinks=False)
    return path


def state(node: FakeNode) -> Path:
    found = node.places.other_runtimes[0].state
    assert found is not None
    return found


def address(node: FakeNode) -> str:
    return str(node.places.other_runtimes[0].socket)


def cgroup(node: FakeNode, path: str, age: float = 1000) -> None:
    node.cgroup(path)
    old(node.places.cgroup_root / path.strip("/"), age)


def plant(node: FakeNode, identifier: str = STRANGER, age: float = 1000) -> set[str]:
    """One of each kind, for a container of containerd's; the kinds."""
    top = state(node)
    for directory in (top / TASKS / "k8s.io", top / "runc/k8s.io", top / CRI / "sandboxes", top / CRI / "containers"):
        old(node.has(directory / identifier), age)
    node.mounts((top / TASKS / "k8s.io" / identifier / "rootfs", "overlay", "rw,upperdir=/u/fs"))
    node.shim(70, identifier, address=address(node), cwd=top / TASKS / "k8s.io" / identifier, age=age)
    fifo = top / "runc/k8s.io" / identifier / "exec.fifo"
    node.process(71, "runc", "init", comm="runc:[2:INIT]", links=[fifo], ppid=70, age=age)
    cgroup(node, f"{POD}/{identifier}", age)
    lease = old(node.has(node.top / "leases" / identifier), age)
    node.leases.append(FakeLease("10.1.0.5", identifier, path=lease))
    node.results.append(FakeResult(identifier, str(old(network_pin(node), age)), path=lease))
    return {"shim", "runc_init", "mount", "netns", "cni", "cgroup", "bundle", "engine_state", "sandbox_dir", "fifo"}


async def kinds(node: FakeNode, wanted: State) -> set[str]:
    found = await node.audit()
    assert {finding.state for finding in found} <= {wanted}
    return {finding.kind.value for finding in found}


async def test_what_a_runtime_has_is_no_leak_of_any_kind(node: FakeNode) -> None:
    node.containerd(STRANGER, uids=[UID])
    plant(node)
    assert await node.found() == []


async def test_what_it_does_not_have_is_one_of_each_kind(node: FakeNode) -> None:
    node.containerd(CONTAINER)
    expected = plant(node)
    assert await kinds(node, State.LEAKED) == expected
    owners = {finding.kind.value: finding.owner for finding in await node.audit()}
    assert {kind for kind, owner in owners.items() if owner == "containerd"} == expected - {"netns", "cni", "cgroup"}
    assert all(finding.targets for finding in await node.audit() if not finding.what.endswith(UID))


async def test_what_is_young_may_just_be_being_made(node: FakeNode) -> None:
    node.containerd()
    plant(node, age=299)
    assert await node.found() == []
    node.now += 2
    assert len(await node.found()) > 9


@pytest.mark.field_fault("6")
async def test_a_runtime_that_does_not_answer_leaves_all_of_its_things_unknown(node: FakeNode) -> None:
    node.containerd(problem="it hangs")
    expected = plant(node)
    assert await kinds(node, State.UNKNOWN) == expected
    finding = next(finding for finding in await node.audit() if finding.kind is Thing.BUNDLE)
    assert finding.what == f"what containerd ({address(node)}) may have"
    assert "it hangs" in finding.why
    assert (finding.targets, finding.sure) == ((), "can't be told")


async def test_a_runtime_that_is_known_by_its_shims_alone(node: FakeNode) -> None:
    """K3s, or a containerd of somebody's own: its place is told by the bundle that a shim works in."""
    runtime = Runtime("containerd", node.top / "srv/containerd.sock", node.top / "srv")
    node.answers[str(runtime.socket)] = Answer(runtime, frozenset({SANDBOX}))
    bundles = runtime.bundles
    assert bundles is not None
    node.shim(70, SANDBOX, address=str(runtime.socket), cwd=bundles / SANDBOX)
    left = old(node.has(bundles / STRANGER))
    assert [(finding.what, finding.owner) for finding in await node.audit()] == [(str(left), "containerd")]


async def test_a_runtime_that_is_stopped_is_not_gone(node: FakeNode) -> None:
    old(node.has(state(node) / TASKS / "k8s.io" / STRANGER))
    assert await node.found() == [("bundle", "unknown", "containerd")]


async def test_namespaces_that_no_cri_lists_are_not_judged(node: FakeNode) -> None:
    """Docker's containers, in the same containerd."""
    node.shim(70, STRANGER, address=address(node), namespace="moby")
    old(node.has(state(node) / TASKS / "moby" / STRANGER))
    fifo = Path("/run/docker/runtime-runc/moby") / STRANGER / "exec.fifo"
    node.process(71, "runc", "init", comm="runc:[2:INIT]", links=[fifo], cgroup=f"/docker/{STRANGER}")
    cgroup(node, f"{POD}/{STRANGER}")  # as cri-dockerd puts it
    node.containerd(uids=[UID])
    assert await node.found() == []


async def test_mounts_with_hostile_names_and_those_that_no_container_has(node: FakeNode) -> None:
    node.containerd()
    bundle = state(node) / TASKS / "k8s.io" / STRANGER
    old(node.has(bundle))
    top = str(state(node))
    rows = [f"{bundle}/rootfs/a\\012b\\040c", f"{top}/{STRANGER}/x", f"{top}/{TASKS}/moby/{STRANGER}/rootfs", f"{bundle}-not", top]
    node.mounts(*((Path(row), "tmpfs", "rw") for row in rows))
    found = [finding for finding in await node.audit() if finding.kind is Thing.MOUNT]
    assert [finding.what for finding in found] == [f"{bundle}/rootfs/a\nb c"]


@pytest.mark.field_fault("15")
async def test_a_shim_is_released_with_its_containers_and_its_socket(node: FakeNode) -> None:
    node.containerd()
    path = node.has(node.top / "s") / "socket"
    path.touch()
    node.listens(path)
    started = node.shim(70, STRANGER, address=address(node), links=["socket:[0]", "socket:[99]", "/dev/null"])
    child = node.process(71, "pause", ppid=70, cgroup="/kube/a")
    init, shim, socket = (await node.only()).targets
    assert (init, shim) == (ProcessTarget(71, child, "/kube/a"), ProcessTarget(70, started, "/", graceful=True))
    assert isinstance(socket, FileTarget)
    assert (socket.path, socket.listening) == (path, True)


# ---- runc init


def waiting(node: FakeNode, *, ppid: int, comm: str = "runc:[2:INIT]", age: float = 1000) -> None:
    fifo = state(node) / "runc/k8s.io" / STRANGER / "exec.fifo"
    node.process(71, "runc", "init", comm=comm, links=[fifo], ppid=ppid, age=age, cgroup=f"/kube/{STRANGER}")


@pytest.mark.parametrize("comm", ["runc:[2:INIT]", "crun"])
async def test_a_container_that_was_created_and_not_started_is_none(node: FakeNode, comm: str) -> None:
    node.containerd(STRANGER, SANDBOX)
    node.shim(70, SANDBOX, address=address(node))
    waiting(node, ppid=70, comm=comm)
    assert await node.found() == []


async def test_one_whose_shim_is_dead_is_one_although_its_runtime_has_it(node: FakeNode) -> None:
    node.containerd(STRANGER)
    waiting(node, ppid=1)
    finding = await node.only()
    assert (finding.kind, finding.state, finding.owner) == (Thing.RUNC_INIT, State.LEAKED, "containerd")
    assert "whose shim or monitor is dead" in finding.why
    assert finding.pins.startswith(f"the cgroup /kube/{STRANGER}, which pins its pod's")
    assert len(finding.targets) == 1
    node.cgroup(f"/kube/{STRANGER}")
    _, target = (await node.only()).targets  # to be released with it, since it is nobody's but its own
    assert isinstance(target, CgroupTarget)
    assert target.path == f"/kube/{STRANGER}"


async def test_one_whose_shim_has_just_died_may_be_in_its_runtimes_hands(node: FakeNode) -> None:
    node.containerd(STRANGER)
    waiting(node, ppid=1, age=200)
    assert await node.found() == []


async def test_one_in_a_cgroup_that_names_its_runtime(node: FakeNode) -> None:
    node.containerd()
    node.process(71, "runc", "init", comm="runc:[1:CHILD]", cgroup=f"/x.slice/cri-containerd-{STRANGER}.scope")
    node.process(72, "runc", "init", comm="runc:[1:CHILD]", cgroup=f"/x.slice/docker-{STRANGER}.scope")
    assert [finding.what for finding in await node.audit()] == ["process 71 (runc:[1:CHILD])"]


@pytest.mark.parametrize("comm", ["runc:[2:INIT]", "crun"])
async def test_the_init_of_an_exec_is_its_engines_child(node: FakeNode, comm: str) -> None:
    node.containerd(STRANGER)
    node.process(70, "runc", "exec", comm="runc")
    node.process(71, "runc", "init", comm=comm, ppid=70, cgroup=f"/x.slice/cri-containerd-{STRANGER}.scope")
    assert await node.found() == []
    node.containerd()
    assert len(await node.found()) == (comm != "crun")


# ---- CRI-O and Podman


async def test_a_monitor_of_a_container_that_crio_does_not_have(node: FakeNode) -> None:
    crio = KNOWN[2]
    node.answers[str(crio.socket)] = Answer(crio, frozenset({CONTAINER}))
    node.process(70, "/usr/bin/conmon", "-c", STRANGER, "-n", "k8s_web")
    node.process(71, "/usr/bin/conmon", "-c", CONTAINER, "-n", "k8s_web")
    node.process(72, "/usr/bin/conmon", "-c", SANDBOX, "--exit-command", "/usr/bin/podman")
    finding = await node.only()
    assert (finding.what, finding.owner) == (f"process 70 (conmon -c {STRANGER})", "cri-o")


async def test_the_network_namespaces_of_crio_have_names_of_their_own(node: FakeNode) -> None:
    crio = KNOWN[2]
    old(network_pin(node, UID))
    assert await node.found() == []
    node.answers[str(crio.socket)] = Answer(crio)
    node.process(70, "/usr/bin/conmon", "-c", STRANGER, age=10)
    assert await node.found() == [("netns", "leaked", "unknown")]


# ---- cgroups of kubelets


@pytest.mark.parametrize("scope", [STRANGER, f"cri-containerd-{STRANGER}.scope", f"crio-{STRANGER}.scope"])
async def test_a_containers_cgroup_that_pins_its_pod(node: FakeNode, scope: str) -> None:
    node.containerd(uids=[UID])
    cgroup(node, f"{POD}/{scope}")
    node.process(30, "sleep", cgroup=f"{POD}/{scope}")
    finding = await node.only()
    assert (finding.kind, finding.what) == (Thing.CGROUP, f"{POD}/{scope}")
    assert "in it: process 30 (sleep)" in finding.why


@pytest.mark.field_fault("15")
async def test_the_slice_of_a_pod_that_nobody_has(node: FakeNode) -> None:
    node.containerd()
    pod = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID.replace('-', '_')}.slice"
    cgroup(node, pod)
    assert await node.found() == []  # empty, it is the kubelet's
    node.process(30, "sleep", cgroup=pod)
    finding = await node.only()
    assert f"the cgroup of pod {UID}, " in finding.why
    assert finding.targets == ()
    node.containerd(uids=[UID])
    assert await node.found() == []


async def test_pods_of_ours_are_not_judged_as_another_runtimes(node: FakeNode) -> None:
    node.containerd()
    cgroup(node, f"{POD}/{CONTAINER}")
    node.process(30, "sleep", cgroup=f"{POD}/{CONTAINER}")
    node.owns(Kind.TASK, CONTAINER, EntryState.INTENDED, container=CONTAINER, cgroup=f"{POD}/{CONTAINER}")
    assert await node.found() == []
    cgroup(node, f"/kubepods/pod{UID}/cri-orlop-{SANDBOX}.scope")
    cgroup(node, f"/kubepods/pod{UID}")
    assert [finding.what for finding in await node.audit()] == [f"/kubepods/pod{UID}", f"/kubepods/pod{UID}/cri-orlop-{SANDBOX}.scope"]
    node.owns(Kind.TASK, SANDBOX, EntryState.INTENDED)  # a sandbox that is a task
    assert await node.found() == []


# ---- what bears no name


async def test_addresses_that_no_cri_asked_for_are_not_judged_beside_another_runtime(node: FakeNode) -> None:
    lease = old(node.has(node.top / "lease"))
    node.leases += [FakeLease("10.1.0.5", "nomad-1", path=lease), FakeLease("10.1.0.6", "", path=lease)]
    assert len(await node.found()) == 2
    node.containerd()
    assert await node.found() == []


async def test_a_socket_at_which_somebody_listens_is_none_that_was_left(node: FakeNode) -> None:
    node.containerd()
    service, profiler = stale_socket(node, STRANGER), node.places.shim_sockets(STRANGER)[1]
    old(service)
    old(profiler)
    assert await node.found() == [("socket", "leaked", "unknown")] * 2
    node.listens(service)
    assert [finding.what for finding in await node.audit()] == [str(profiler)]


async def test_a_chain_that_nothing_else_is_left_of(node: FakeNode) -> None:
    node.chains += [FakeChain(SANDBOX), FakeChain(STRANGER), FakeChain(CONTAINER, tool="ip6tables"), FakeChain("nomad-1"), FakeChain("")]
    node.owns(Kind.CNI, SANDBOX)
    node.results.append(FakeResult(CONTAINER))
    assert ("chain", "leaked", "unknown") in await node.found()
    [finding] = [finding for finding in await node.audit() if finding.kind is Thing.CHAIN]
    assert finding.targets == (ChainTarget("iptables", "CNI-0123456789abcdef", STRANGER),)
    node.containerd(problem="it hangs")
    assert ("chain", "unknown", "unknown") in await node.found()
    node.containerd(STRANGER)
    assert Thing.CHAIN not in {finding.kind for finding in await node.audit()}


# ---- asking


def test_a_name_that_only_one_of_two_runtimes_can_tell() -> None:
    mute, fit = (Runtime("containerd", Path(f"/{name}.sock")) for name in ("mute", "fit"))
    answers = Foreign([Answer(mute, problem="it hangs"), Answer(fit, frozenset({CONTAINER}))])
    assert answers.life(CONTAINER, mute) is Life.ALIVE
    assert answers.life(STRANGER, fit) is Life.GONE
    assert answers.life(STRANGER, mute) is Life.UNKNOWN
    assert answers.life(STRANGER, None) is Life.UNKNOWN
    assert Foreign([], ["another orlop serve"]).problem(None) == "there is no socket to ask another orlop serve"


class FakeCri:
    """Of one socket."""

    def __init__(self, socket: str) -> None:
        self.socket = socket

    async def __aenter__(self) -> FakeCri:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def call(self, method: str, _: object) -> object:
        if self.socket == "/down.sock":
            raise Unavailable("nobody serves /down.sock")
        if method == "ListContainers":
            return cri.ListContainersResponse(containers=[cri.Container(id="c", state=cri.CONTAINER_CREATED)])
        pod = cri.PodSandbox(id="s", state=cri.SANDBOX_NOTREADY, metadata=cri.PodSandboxMetadata(uid="u"))
        return cri.ListPodSandboxResponse(items=[pod])


async def test_asking_keeps_the_one_that_is_down_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "Client", FakeCri)
    up, down = (Runtime("containerd", Path(f"/{name}.sock")) for name in ("up", "down"))
    assert await foreign.ask([up, down]) == [
        Answer(up, frozenset({"s", "c"}), frozenset({"u"})),
        Answer(down, problem="nobody serves /down.sock"),
    ]


def test_how_sure_a_finding_is() -> None:
    finding = Finding(Thing.NETNS, "x", "unknown", State.LEAKED, "", "")
    assert finding.sure == "likely"
    assert finding.to_json()["sure"] == "likely"
