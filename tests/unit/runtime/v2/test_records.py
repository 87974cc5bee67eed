"""What the ledger keeps of shims and tasks survives JSON, and other versions of the agent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.config.handlers import RuntimeHandler
from agent.errdefs import DataLoss
from agent.linux.processes import Identity
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.records import ShimRecord, TaskRecord, cgroup_of

SHIM = ShimRecord("s", "s", RuntimeHandler("runc", engine="crun"), pinned=True, binary="/bin/shim")
TASK = TaskRecord("c", "s", "s", "/bin/shim", "crun", "/run/runc/k8s.io", systemd_cgroup=True, cgroup="/pods/c")


def test_a_shim() -> None:
    started = SHIM.listening(Bootstrap(3, "unix:///x", "ttrpc"), Identity(7, 8))
    assert (started.bootstrap, started.identity) == (Bootstrap(3, "unix:///x", "ttrpc"), Identity(7, 8))
    assert ShimRecord.from_data(json.loads(json.dumps(started.to_data()))) == started
    assert SHIM.identity is None


def test_a_task() -> None:
    task = TaskRecord.from_data({**json.loads(json.dumps(TASK.to_data())), "of a newer version": 1})
    assert task == TASK
    assert (task.init, task.create, task.is_sandbox) == (None, False, False)


@pytest.mark.parametrize(
    "data", [{}, {"handler": "runc"}, {**SHIM.to_data(), "handler": {"unknown": 1}}, {**SHIM.to_data(), "handler": "runc"}]
)
def test_not_a_shim(data: dict[str, Any]) -> None:
    with pytest.raises(DataLoss):
        ShimRecord.from_data(data)


def test_not_a_task() -> None:
    with pytest.raises(DataLoss):
        TaskRecord.from_data({"handler": "runc"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/kubepods/pod1/c1", "/kubepods/pod1/c1"),
        (
            "kubepods-burstable-pod1.slice:cri-orlop:c1",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-orlop-c1.scope",
        ),
        (":cri-orlop:c1", "/system.slice/cri-orlop-c1.scope"),
        ("-.slice:cri-orlop:c1", "/cri-orlop-c1.scope"),
        ("/kubepods/pod1", ""),
        ("relative/c1", ""),
        ("", ""),
    ],
)
def test_the_cgroup_of_a_spec(path: str, expected: str) -> None:
    """Only one that is the container's alone: whoever is in it is going to be killed."""
    assert cgroup_of({"linux": {"cgroupsPath": path}}, "c1") == expected


def test_a_spec_without_a_cgroup() -> None:
    assert cgroup_of({}, "c1") == ""
