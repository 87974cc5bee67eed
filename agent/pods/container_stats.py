"""ContainerStats, ListContainerStats, StreamContainerStats.

A container that runs has what its cgroup says, and every container what it has written. One that ends while it is looked at
is like one that has ended: it has no CPU and no memory, rather than none used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from agent import log
from agent.aio import together
from agent.errdefs import OrlopError
from agent.pods import usage
from agent.pods.container import ContainerState
from agent.pods.context import Pods
from agent.pods.registry import Container
from agent.stats import Sample, shim
from cri.api import api_pb2 as cri

_log = log.get("pods")

_PER_MESSAGE = 200
"""Containers in one message of a stream; about a KiB each, mostly their labels and annotations."""


async def container_stats(pods: Pods, request: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
    """CRI ContainerStats.

    Raises:
        NotFound: no such container.
    """
    [stats] = await collect(pods, [pods.registry.containers.get(request.container_id)])
    return cri.ContainerStatsResponse(stats=stats)


async def list_container_stats(pods: Pods, request: cri.ListContainerStatsRequest) -> cri.ListContainerStatsResponse:
    """CRI ListContainerStats; an empty filter lists all, also those that don't run."""
    return cri.ListContainerStatsResponse(stats=await collect(pods, _selected(pods, request.filter)))


async def stream_container_stats(
    pods: Pods, request: cri.StreamContainerStatsRequest
) -> AsyncGenerator[cri.StreamContainerStatsResponse, None]:
    """CRI StreamContainerStats: ListContainerStats in several messages, each read when it is sent."""
    selected = _selected(pods, request.filter)
    for start in range(0, len(selected), _PER_MESSAGE):
        yield cri.StreamContainerStatsResponse(container_stats=await collect(pods, selected[start : start + _PER_MESSAGE]))


async def collect(pods: Pods, containers: Sequence[Container]) -> list[cri.ContainerStats]:
    """The statistics of each."""
    running = [live for live in containers if live.record.state is ContainerState.RUNNING]
    here = [live for live in running if live.record.cgroups]
    elsewhere = [live for live in running if not live.record.cgroups]
    from_cgroups, from_shims = await together(
        pods.stats.read([usage.cgroup_of(pods, live) for live in here]),
        together(*(_ask_shim(pods, live) for live in elsewhere)),
    )
    samples: dict[Container, Sample | None] = dict(zip([*here, *elsewhere], [*from_cgroups, *from_shims], strict=True))
    return [_stats(pods, live, samples.get(live)) for live in containers]


def _selected(pods: Pods, wanted: cri.ContainerStatsFilter) -> list[Container]:
    return [
        live
        for live in pods.registry.containers
        if live.record.id.startswith(wanted.id)
        and live.record.sandbox_id.startswith(wanted.pod_sandbox_id)
        and all(live.record.config.labels.get(key) == value for key, value in wanted.label_selector.items())
    ]


async def _ask_shim(pods: Pods, live: Container) -> Sample | None:
    try:
        return shim.sample(await pods.tasks.get(live.record.id).stats())
    except OrlopError as error:
        _log.info("no statistics of a container", container=live.record.id, error=str(error))
        return None


def _stats(pods: Pods, live: Container, sample: Sample | None) -> cri.ContainerStats:
    record = live.record
    attributes = cri.ContainerAttributes(
        id=record.id, metadata=record.config.metadata, labels=record.config.labels, annotations=record.config.annotations
    )
    written = _writable_layer(pods, record.id)
    if sample is None:
        return cri.ContainerStats(attributes=attributes, writable_layer=written)
    return cri.ContainerStats(
        attributes=attributes,
        writable_layer=written,
        cpu=usage.cpu(sample, live.meter),
        memory=usage.memory(sample),
        swap=usage.swap(sample),
        io=usage.io(sample),
    )


def _writable_layer(pods: Pods, container_id: str) -> cri.FilesystemUsage | None:
    """What the container has written, as last measured; None if the daemon has started since, and not measured yet."""
    measured = pods.images.usage(container_id)
    if measured is None:
        return None
    return cri.FilesystemUsage(
        timestamp=int(measured.time * 1e9),
        fs_id=cri.FilesystemIdentifier(mountpoint=pods.images.mountpoint),
        used_bytes=cri.UInt64Value(value=measured.size),
        inodes_used=cri.UInt64Value(value=measured.inodes),
    )
