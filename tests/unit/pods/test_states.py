"""The state machines: every pair of state and event is either in the table or refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errdefs import DataLoss, FailedPrecondition
from agent.linux.mounts import Mount
from agent.pods import container, sandbox
from agent.pods.container import ContainerEvent, ContainerRecord, ContainerState
from agent.pods.sandbox import Pin, SandboxEvent, SandboxRecord, SandboxState
from cri.api import api_pb2 as cri


def sandbox_record(**changes: Any) -> SandboxRecord:
    fields: dict[str, Any] = {
        "id": "ab" * 32,
        "config": cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u1", attempt=2)),
        "handler": "runc",
        "created_at": 17,
        "directory": "/run/orlop/sandboxes/x",
        "cgroup_parent": "/kubepods/x",
        "pins": {"network": Pin("/run/netns/cni-x", 4026532000)},
        "ips": ("10.0.0.2", "fd00::2"),
    }
    return SandboxRecord(**{**fields, **changes})


def container_record(**changes: Any) -> ContainerRecord:
    fields: dict[str, Any] = {
        "id": "cd" * 32,
        "sandbox_id": "ab" * 32,
        "config": cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app", attempt=1), labels={"k": "v"}),
        "image_id": "sha256:" + "0" * 64,
        "image_name": "example.org/app:1",
        "spec": {"process": {"env": ["A=\udcff"]}},
        "rootfs": (Mount("overlay", "overlay", ("lowerdir=/l/1", "upperdir=/u")),),
        "log_path": "/var/log/pods/x/0.log",
        "created_at": 18,
        "stop_signal": 15,
    }
    return ContainerRecord(**{**fields, **changes})


@pytest.mark.parametrize("state", SandboxState)
@pytest.mark.parametrize("event", SandboxEvent)
def test_each_sandbox_transition_is_in_the_table_or_refused(state: SandboxState, event: SandboxEvent) -> None:
    record = sandbox_record(state=state)
    target = sandbox.TRANSITIONS.get((state, event))
    if target is None:
        with pytest.raises(FailedPrecondition, match=record.id):
            record.after(event)
    else:
        assert record.after(event).state is target


@pytest.mark.parametrize("state", ContainerState)
@pytest.mark.parametrize("event", ContainerEvent)
def test_each_container_transition_is_in_the_table_or_refused(state: ContainerState, event: ContainerEvent) -> None:
    record = container_record(state=state)
    target = container.TRANSITIONS.get((state, event))
    if target is None:
        with pytest.raises(FailedPrecondition, match=record.id):
            record.after(event)
    else:
        assert record.after(event, exit_code=3).exit_code == 3
        assert record.after(event).state is target


def test_nothing_leads_back_from_exited() -> None:
    assert not [event for (state, event) in container.TRANSITIONS if state is ContainerState.EXITED]


def test_a_sandbox_is_ready_for_the_kubelet_only_while_it_is_ready() -> None:
    shown = {state: sandbox_record(state=state).cri_state for state in SandboxState}
    assert [state for state, value in shown.items() if value == cri.SANDBOX_READY] == [SandboxState.READY]


def test_records_survive_the_store() -> None:
    pod, app = sandbox_record(state=SandboxState.STOPPING), container_record(state=ContainerState.EXITED, exit_code=137, oom=True)
    assert SandboxRecord.decode(pod.encode()) == pod
    assert ContainerRecord.decode(app.encode()) == app


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b'{"id": 1}', sandbox_record().encode()[:-7], b"\xff\xfe"])
def test_a_torn_record_is_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        SandboxRecord.decode(data)
    with pytest.raises(DataLoss):
        ContainerRecord.decode(data)


def test_names_hold_what_must_be_unique() -> None:
    assert sandbox_record().name == "web_default_u1_2"
    assert container_record().name == "app_" + "ab" * 32 + "_1"
