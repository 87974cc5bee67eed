"""PodSandboxStats, ListPodSandboxStats, StreamPodSandboxStats: a pod's cgroup, its network, and its containers.

Of sandboxes that are ready: others have no cgroup and no network any more.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from agent import log, timeouts
from agent.aio import together, within
from agent.errdefs import DeadlineExceeded, FailedPrecondition
from agent.pods import container_stats, usage
from agent.pods.context import Pods
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxState
from agent.stats import Cgroup, Interface, Sample, parse_interfaces
from cri.api import api_pb2 as cri

_log = log.get("pods")

_PER_MESSAGE = 50
"""Sandboxes, with their containers, in one message of a stream."""


async def pod_sandbox_stats(pods: Pods, request: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
    """CRI PodSandboxStats.

    Raises:
        NotFound: no such sandbox.
        FailedPrecondition: the sandbox is not ready.
    """
    live = pods.registry.sandboxes.get(request.pod_sandbox_id)
    if live.record.state is not SandboxState.READY:
        raise FailedPrecondition(f"sandbox {live.record.id} is {live.record.state}, not ready: there is nothing to be measured")
    [stats] = await _collect(pods, [live])
    return cri.PodSandboxStatsResponse(stats=stats)


async def list_pod_sandbox_stats(pods: Pods, request: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
    """CRI ListPodSandboxStats, of the sandboxes that are ready; an empty filter lists all of these."""
    return cri.ListPodSandboxStatsResponse(stats=await _collect(pods, _selected(pods, request.filter)))


async def stream_pod_sandbox_stats(
    pods: Pods, request: cri.StreamPodSandboxStatsRequest
) -> AsyncGenerator[cri.StreamPodSandboxStatsResponse, None]:
    """CRI StreamPodSandboxStats: ListPodSandboxStats in several messages, each read when it is sent."""
    selected = _selected(pods, request.filter)
    for start in range(0, len(selected), _PER_MESSAGE):
        yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=await _collect(pods, selected[start : start + _PER_MESSAGE]))


def _selected(pods: Pods, wanted: cri.PodSandboxStatsFilter) -> list[Sandbox]:
    return [
        live
        for live in pods.registry.sandboxes
        if live.record.state is SandboxState.READY
        and live.record.id.startswith(wanted.id)
        and all(live.record.config.labels.get(key) == value for key, value in wanted.label_selector.items())
    ]


async def _collect(pods: Pods, sandboxes: Sequence[Sandbox]) -> list[cri.PodSandboxStats]:
    members: dict[str, list[Container]] = defaultdict(list)
    for live in pods.registry.containers:
        members[live.record.sandbox_id].append(live)
    containers = [live for sandbox in sandboxes for live in members[sandbox.record.id]]
    stats, samples, interfaces = await together(
        container_stats.collect(pods, containers),
        pods.stats.read([_cgroup(pods, sandbox) for sandbox in sandboxes]),
        interfaces_of(pods, sandboxes),
    )
    of_container: dict[str, cri.ContainerStats] = {found.attributes.id: found for found in stats}
    return [
        _stats(sandbox, sample, interfaces.get(sandbox, []), [of_container[live.record.id] for live in members[sandbox.record.id]])
        for sandbox, sample in zip(sandboxes, samples, strict=True)
    ]


def _cgroup(pods: Pods, sandbox: Sandbox) -> Cgroup:
    """The pod's own cgroup. It has no process that could be asked where it is, but its path is known."""
    if sandbox.meter.cgroup is None:
        sandbox.meter.cgroup = pods.stats.at(sandbox.record.cgroup_parent)
    return sandbox.meter.cgroup


async def interfaces_of(pods: Pods, sandboxes: Sequence[Sandbox]) -> dict[Sandbox, list[Interface]]:
    """Of those with a network of their own; the node's is not a pod's."""
    pinned = [sandbox for sandbox in sandboxes if "network" in sandbox.record.pins]
    if not pinned:
        return {}
    pins = [Path(sandbox.record.pins["network"].path) for sandbox in pinned]
    try:
        tables = await within(timeouts.STATS, pods.namespaces.interface_counters(pins), "reading the counters of some pods' interfaces")
    except (DeadlineExceeded, OSError) as error:
        _log.warning("no network statistics", error=str(error))
        return {}
    return {sandbox: parse_interfaces(table) for sandbox, table in zip(pinned, tables, strict=True) if table is not None}


def _stats(
    sandbox: Sandbox, sample: Sample | None, interfaces: list[Interface], containers: list[cri.ContainerStats]
) -> cri.PodSandboxStats:
    record = sandbox.record
    network = usage.network(interfaces, time.time_ns())
    if sample is None:
        linux = cri.LinuxPodSandboxStats(containers=containers, network=network)
    else:
        linux = cri.LinuxPodSandboxStats(
            containers=containers,
            network=network,
            cpu=usage.cpu(sample, sandbox.meter),
            memory=usage.memory(sample),
            process=usage.processes(sample),
            io=usage.io(sample),
        )
    attributes = cri.PodSandboxAttributes(
        id=record.id, metadata=record.config.metadata, labels=record.config.labels, annotations=record.config.annotations
    )
    return cri.PodSandboxStats(attributes=attributes, linux=linux)
