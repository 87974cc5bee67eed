"""What the tests of `agent.pods.spec` share: inputs with everything at its plainest, to be changed by name."""

from __future__ import annotations

from typing import Any

from agent.config.handlers import RuntimeHandler
from agent.images.documents import ImageConfig
from agent.pods.facts import CAPABILITIES, NodeFacts
from agent.pods.sandbox import Pin, SandboxRecord
from agent.pods.spec.inputs import SpecInputs
from agent.runtime.v2.features import HandlerFeatures
from cri.api import api_pb2 as cri

CONTAINER = "cd" * 32
DIRECTORY = "/run/orlop/sandboxes/x"
PINS = {"network": Pin("/run/netns/cni-x", 1), "uts": Pin("/run/orlop/x-uts", 2), "ipc": Pin("/run/orlop/x-ipc", 3)}


def facts(**changes: Any) -> NodeFacts:
    """A node that forbids nothing, with cgroup v1."""
    fields: dict[str, Any] = {
        "capabilities": frozenset(CAPABILITIES),
        "oom_score_floor": -1000,
        "nofile_limit": 1 << 20,
        "cgroup_v2": False,
        "hugetlb": True,
        "swap_accounting": True,
        "apparmor": False,
    }
    return NodeFacts(**{**fields, **changes})


def inputs(
    config: cri.ContainerConfig | None = None,
    *,
    security: cri.LinuxContainerSecurityContext | None = None,
    resources: cri.LinuxContainerResources | None = None,
    pod: cri.PodSandboxConfig | None = None,
    pins: dict[str, Pin] | None = None,
    cgroup_parent: str = "/kubepods/pod1",
    **changes: Any,
) -> SpecInputs:
    """`security` and `resources` are put into `config`; `changes` are fields of SpecInputs."""
    config = config or cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"), image=cri.ImageSpec(image="busybox"))
    if security is not None:
        config.linux.security_context.CopyFrom(security)
    if resources is not None:
        config.linux.resources.CopyFrom(resources)
    sandbox = SandboxRecord(
        id="ab" * 32,
        config=pod or cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u1"), hostname="web"),
        handler="runc",
        created_at=1,
        directory=DIRECTORY,
        cgroup_parent=cgroup_parent,
        pins=PINS if pins is None else pins,
    )
    fields: dict[str, Any] = {
        "container_id": CONTAINER,
        "sandbox": sandbox,
        "handler": RuntimeHandler("runc"),
        "config": config,
        "image": ImageConfig(cmd=("/bin/app",)),
        "passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "group": b"root:x:0:\n",
        "facts": facts(),
        "features": HandlerFeatures(),
        "pid_namespace": None,
    }
    return SpecInputs(**{**fields, **changes})
