"""UpdateContainerResources: other limits for a container, in its cgroup and in its record.

What a request leaves at zero stays as it is (api.proto: "not specified"). A container that was not started yet gets its new
limits when it is; one that runs gets them now, from the engine, and the record follows when that has worked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent import log
from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound, Unknown
from agent.pods import usage
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.pods.registry import Container
from agent.pods.spec import linux
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def update_container_resources(pods: Pods, request: cri.UpdateContainerResourcesRequest) -> cri.UpdateContainerResourcesResponse:
    """CRI UpdateContainerResources. `oom_score_adj` is not a limit of the cgroup, and stays what it was.

    Raises:
        NotFound: no such container.
        InvalidArgument: a value that can't be, alone or with those that stay; the message names it. Nothing was changed.
        FailedPrecondition: the container has ended.
        Unknown: the engine or the kernel refused, with their text; a memory limit below what is in use, for one.
    """
    live = pods.registry.containers.get(request.container_id)
    if request.HasField("windows"):
        raise InvalidArgument("windows: this node runs Linux")
    await pods.supervisor.detached(_update(pods, live, request), name=f"UpdateContainerResources {live.record.id}")
    return cri.UpdateContainerResourcesResponse()


async def _update(pods: Pods, live: Container, request: cri.UpdateContainerResourcesRequest) -> None:
    container_id = live.record.id
    async with pods.locks.hold(f"resources of {container_id}"):  # so that the last one that was asked for is the last in the cgroup
        async with pods.locks.hold(container_id):  # a start under way ends first: it has read the old limits
            record = live.record
            wanted = merged(record.config.linux.resources, request.linux)
            limits = linux.resources(wanted, pods.facts, "linux")
            if record.state is ContainerState.CREATED:
                await pods.registry.containers.update(live, _changed(record, wanted, limits))
                return
        if live.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container_id} has ended: its resources can't be changed any more")
        await _refuse_less_than_in_use(pods, live, request.linux.memory_limit_in_bytes)
        try:
            await pods.tasks.get(container_id).update(_for_engine(limits), request.annotations)
        except NotFound as error:
            raise FailedPrecondition(f"container {container_id} ended before its resources were changed: {error}") from error
        await pods.registry.containers.update(live, _changed(live.record, wanted, limits))
    _log.info("container resources updated", container=container_id, resources=limits)


def merged(present: cri.LinuxContainerResources, asked: cri.LinuxContainerResources) -> cri.LinuxContainerResources:
    """What is asked for, and of what is not, the present."""
    wanted = cri.LinuxContainerResources()
    wanted.CopyFrom(present)
    wanted.MergeFrom(asked)
    wanted.oom_score_adj = present.oom_score_adj
    # A repeated field is merged by appending; here a page size has one limit, the last.
    pages = {limit.page_size: limit.limit for limit in wanted.hugepage_limits}
    del wanted.hugepage_limits[:]
    wanted.hugepage_limits.extend(cri.HugepageLimit(page_size=size, limit=limit) for size, limit in pages.items())
    # The limit of swap includes the memory. Where they are equal no swap was allowed, and so it stays with another amount of memory.
    if 0 < present.memory_limit_in_bytes == present.memory_swap_limit_in_bytes and not asked.memory_swap_limit_in_bytes:
        wanted.memory_swap_limit_in_bytes = wanted.memory_limit_in_bytes
    return wanted


async def _refuse_less_than_in_use(pods: Pods, live: Container, limit: int) -> None:
    """v1 refuses such a limit by itself. On v2 the kernel kills what is too much, and crun doesn't look before."""
    if limit <= 0 or not pods.facts.cgroup_v2 or not live.record.cgroups:
        return
    [sample] = await pods.stats.read([usage.cgroup_of(pods, live)])
    if sample is not None and sample.memory is not None and (used := sample.memory.working_set) > limit:
        raise Unknown(f"container {live.record.id} has {used} bytes of memory in use, and the kernel would kill it for a limit of {limit}")


def _changed(record: ContainerRecord, wanted: cri.LinuxContainerResources, limits: Mapping[str, Any]) -> ContainerRecord:
    """The record with other limits, in the CRI's words and in the spec's."""
    config = cri.ContainerConfig()
    config.CopyFrom(record.config)
    config.linux.resources.CopyFrom(wanted)
    spec_linux = record.spec["linux"]
    resources = {"devices": spec_linux["resources"]["devices"], **limits}
    return replace(record, config=config, spec={**record.spec, "linux": {**spec_linux, "resources": resources}})


def _for_engine(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Engines that know of it refuse a limit below what is in use; without it, on v2, the kernel would kill what is too much."""
    if "memory" not in limits:
        return dict(limits)
    return {**limits, "memory": {**limits["memory"], "checkBeforeUpdate": True}}
