"""UpdatePodSandboxResources: what a pod may use as a whole, after a resize in place (KEP-1287, KEP-5419).

The limits are in the pod's cgroup, which is the kubelet's, and the kubelet has set them by the time of this call, or will. The
sandbox has no process of its own that they'd be for; so they are remembered, shown by PodSandboxStatus, and no more. containerd
and CRI-O do the same, but for their NRI plugins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent import log
from agent.errdefs import FailedPrecondition, InvalidArgument
from agent.pods.context import Pods
from agent.pods.registry import Sandbox
from agent.pods.sandbox import SandboxState
from agent.pods.spec import linux
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def update_pod_sandbox_resources(pods: Pods, request: cri.UpdatePodSandboxResourcesRequest) -> cri.UpdatePodSandboxResourcesResponse:
    """CRI UpdatePodSandboxResources. `overhead` and `resources` take the place of what there was, each if the request has it.

    Raises:
        NotFound: no such sandbox.
        FailedPrecondition: the sandbox is not ready.
        InvalidArgument: a value that can't be; the message names it. Nothing was changed.
    """
    live = pods.registry.sandboxes.get(request.pod_sandbox_id)
    if live.record.state is not SandboxState.READY:
        raise FailedPrecondition(f"sandbox {live.record.id} is {live.record.state}, not ready: its resources can't be changed any more")
    for field, value in _negatives(request.overhead):
        raise InvalidArgument(f"overhead.{field} {value} must not be negative")
    linux.resources(request.resources, pods.facts, "resources")
    await pods.supervisor.detached(_update(pods, live, request), name=f"UpdatePodSandboxResources {live.record.id}")
    return cri.UpdatePodSandboxResourcesResponse()


async def _update(pods: Pods, live: Sandbox, request: cri.UpdatePodSandboxResourcesRequest) -> None:
    config = cri.PodSandboxConfig()
    config.CopyFrom(live.record.config)
    for field in ("overhead", "resources"):
        if request.HasField(field):
            getattr(config.linux, field).CopyFrom(getattr(request, field))
    if config == live.record.config:
        return
    await pods.registry.sandboxes.update(live, replace(live.record, config=config))
    _log.info("sandbox resources updated", sandbox=live.record.id)


def _negatives(overhead: cri.LinuxContainerResources) -> Iterator[tuple[str, int]]:
    """An overhead is less than what a container could run with, so that it has no other bounds."""
    for field in ("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes"):
        if (value := getattr(overhead, field)) < (-1 if field == "cpu_quota" else 0):
            yield field, value
