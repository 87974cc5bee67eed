"""Which cgroup a pod goes into, who makes it, and that nothing in it is killed by its release."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.config.handlers import RuntimeHandler
from agent.errdefs import Busy, FailedPrecondition, InvalidArgument
from agent.pods import pod_cgroup
from agent.pods.context import Pods
from agent.pods.sandbox import SandboxRecord, SandboxState
from agent.store.kinds import Kind
from agent.store.resource import Intent, Resource, State
from cri.api import api_pb2 as cri

ID = "ab" * 32
CGROUPFS, SYSTEMD = RuntimeHandler("crun"), RuntimeHandler("crun", systemd_cgroup=True)


class Calls:
    """Stands for both `Cgroups` and `Systemd`, and notes what is asked of them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, ...]] = []
        self.pids: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: str) -> object:
            if name == "processes":
                return self.pids
            self.made.append((name, *arguments))
            return None

        return call


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def pods(calls: Calls) -> Pods:
    return cast(Pods, SimpleNamespace(pod_cgroup="/a.slice/a-b.slice", cgroups=calls, systemd=calls))


@pytest.mark.parametrize(
    ("handler", "asked_for", "path"),
    [
        (CGROUPFS, "/kubepods/besteffort/pod1", "/kubepods/besteffort/pod1"),
        (CGROUPFS, "", f"/a.slice/a-b.slice/pod{ID}"),
        (SYSTEMD, "kubepods-besteffort-pod1.slice", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice"),
        (SYSTEMD, "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        (SYSTEMD, "", f"/a.slice/a-b.slice/a-b-pod{ID}.slice"),
    ],
)
def test_which(pods: Pods, handler: RuntimeHandler, asked_for: str, path: str) -> None:
    assert pod_cgroup.of(pods, handler, ID, asked_for) == path


@pytest.mark.field_fault("31")
@pytest.mark.parametrize(
    ("handler", "asked_for", "words"),
    [
        (CGROUPFS, "/kubepods.slice/kubepods-pod1.slice", "for the cgroup driver systemd, but this agent's is cgroupfs"),
        (SYSTEMD, "/kubepods/pod1", "for the cgroup driver cgroupfs, but this agent's is systemd"),
    ],
)
def test_a_kubelet_with_the_other_driver(pods: Pods, handler: RuntimeHandler, asked_for: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        pod_cgroup.of(pods, handler, ID, asked_for)


async def test_made_and_removed(pods: Pods, calls: Calls) -> None:
    await pod_cgroup.make(pods, "/pods/pod1")
    await pod_cgroup.release(pods, "/pods/pod1")
    assert calls.made == [("create", "/pods/pod1"), ("remove", "/pods/pod1")]


async def test_a_slice_is_made_and_stopped_by_systemd(pods: Pods, calls: Calls) -> None:
    await pod_cgroup.make(pods, "/a.slice/a-b.slice")
    await pod_cgroup.release(pods, "/a.slice/a-b.slice")
    assert calls.made == [("start_slice", "a-b.slice"), ("stop", "a-b.slice"), ("remove", "/a.slice/a-b.slice")]


async def test_a_slice_with_processes_is_not_stopped(pods: Pods, calls: Calls) -> None:
    """systemd would kill them, and they are nobody's that is to be killed."""
    calls.pids = {7}
    with pytest.raises(Busy, match=r"\[7\]"):
        await pod_cgroup.release(pods, "/a.slice/a-b.slice")
    assert calls.made == []


@pytest.mark.parametrize(
    ("state", "released"), [(State.RELEASING, True), (State.FAILED, True), (State.HELD, False), (State.INTENDED, False)]
)
async def test_what_an_earlier_attempt_left_goes_before_the_next_looks(state: State, released: bool) -> None:
    """With what uses it, and only if it goes: a pod that shares it with another takes nothing away."""

    def entry(kind: Kind, key: str) -> Resource:
        return replace(Resource.intended(Intent(kind, key, sandbox=ID, container="c" * (kind is Kind.TASK)), now=1), state=state)

    cgroup, task, netns = entry(Kind.CGROUP, "/pods/pod1"), entry(Kind.TASK, "c"), entry(Kind.NETNS, "/run/netns/1")
    done: list[Resource] = []

    async def release(resources: list[Resource]) -> None:
        done.extend(resources)

    ledger = SimpleNamespace(
        get=lambda kind, key: cgroup if (kind, key) == cgroup.id else None,
        owned=lambda sandbox: [task, netns, cgroup] if sandbox == ID else [],
    )
    pods = cast(Pods, SimpleNamespace(ledger=ledger, releases=SimpleNamespace(release=release)))
    await pod_cgroup.settle(pods, "/pods/pod2")
    assert done == []
    await pod_cgroup.settle(pods, "/pods/pod1")
    assert done == ([task, cgroup] if released else [])


def record(name: str, cgroup_parent: str, state: SandboxState = SandboxState.READY) -> SandboxRecord:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name=name, namespace="default"))
    return SandboxRecord(
        id=ID, config=config, handler="crun", created_at=1, directory="/x", cgroup_parent=cgroup_parent, pins={}, ips=(), state=state
    )


@pytest.mark.field_fault("31")
@pytest.mark.parametrize(("systemd", "name"), [(True, "path"), (False, "slice")])
def test_the_driver_is_not_changed_under_pods_that_run(systemd: bool, name: str) -> None:
    """Neither way; those that are stopped don't count, nor those that are of this driver."""
    records = [record("path", "/kubepods/pod1"), record("slice", "/kubepods.slice/kubepods-pod1.slice")]
    with pytest.raises(FailedPrecondition, match=f"default/{name} in") as refused:
        pod_cgroup.refuse_another_driver(records, systemd=systemd)
    assert str(refused.value).count("default/") == 1
    stopped = [replace(each, state=SandboxState.STOPPED) for each in records]
    pod_cgroup.refuse_another_driver(stopped, systemd=systemd)
