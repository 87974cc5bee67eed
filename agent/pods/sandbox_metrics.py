"""ListMetricDescriptors, ListPodSandboxMetrics, StreamPodSandboxMetrics: what the kubelet shows under /metrics/cadvisor (KEP-2371).

Of sandboxes that are ready, and their containers that run. One that ends while it is looked at is left out. Numbers are read
when they are asked for, so they have no timestamp (api.proto); what was measured before has its own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence

from agent.aio import in_thread, together
from agent.pods import sandbox_stats, usage
from agent.pods.container import ContainerState
from agent.pods.context import Pods
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxState
from agent.pods.wire import element
from agent.snapshots.snapshotter import Usage
from agent.stats import Interface, Subject, Value
from agent.stats import descriptors as metrics
from cri.api import api_pb2 as cri

_PER_MESSAGE = 20
"""Sandboxes in one message of a stream; a container has about 6 KiB of metrics."""
_KINDS: dict[str, cri.MetricType] = {"counter": cri.COUNTER, "gauge": cri.GAUGE}
_DESCRIPTORS = cri.ListMetricDescriptorsResponse(
    descriptors=[
        cri.MetricDescriptor(name=entry.name, help=entry.help, label_keys=[*metrics.BASE, *entry.labels]) for entry in metrics.TABLE
    ]
)


async def list_metric_descriptors(pods: Pods, request: cri.ListMetricDescriptorsRequest) -> cri.ListMetricDescriptorsResponse:
    """CRI ListMetricDescriptors: always the same."""
    return _DESCRIPTORS


async def list_pod_sandbox_metrics(pods: Pods, request: cri.ListPodSandboxMetricsRequest) -> bytes:
    """CRI ListPodSandboxMetrics, as wire bytes."""
    return await _collect(pods, _ready(pods))


async def stream_pod_sandbox_metrics(pods: Pods, request: cri.StreamPodSandboxMetricsRequest) -> AsyncGenerator[bytes, None]:
    """CRI StreamPodSandboxMetrics: ListPodSandboxMetrics in several messages, each read when it is sent."""
    sandboxes = _ready(pods)
    for start in range(0, len(sandboxes), _PER_MESSAGE):
        yield await _collect(pods, sandboxes[start : start + _PER_MESSAGE])


def _ready(pods: Pods) -> list[Sandbox]:
    return [live for live in pods.registry.sandboxes if live.record.state is SandboxState.READY]


async def _collect(pods: Pods, sandboxes: Sequence[Sandbox]) -> bytes:
    """The response: in both RPCs, field 1 has the sandboxes."""
    members: dict[str, list[Container]] = defaultdict(list)
    for live in pods.registry.containers:
        if live.record.state is ContainerState.RUNNING:
            members[live.record.sandbox_id].append(live)
    containers = [live for sandbox in sandboxes for live in members[sandbox.record.id]]
    here = [live for live in containers if live.record.cgroups]
    readouts, interfaces, filesystem = await together(
        pods.stats.read_out([Subject(usage.cgroup_of(pods, live), live.record.pid) for live in here]),
        sandbox_stats.interfaces_of(pods, sandboxes),
        pods.stats.filesystem(pods.images.mountpoint),
    )
    # A container in a sandbox of its own (Kata, gVisor) has no cgroup here; its shim is not asked for what is for people only.
    values: dict[Container, list[Value] | None] = {**{live: [] for live in containers}, **dict(zip(here, readouts, strict=True))}
    written = {live: pods.images.usage(live.record.id) for live in containers}

    def render() -> bytes:
        parts = []
        for sandbox in sandboxes:
            message = cri.PodSandboxMetrics(pod_sandbox_id=sandbox.record.id)
            _add(message, _labels(sandbox), _network(interfaces.get(sandbox, [])))
            for live in members[sandbox.record.id]:
                found = values[live]
                if found is not None:
                    _add_container(message, sandbox, live, [*found, *filesystem], written[live])
            parts.append(element(1, message.SerializeToString()))
        return b"".join(parts)

    return await in_thread(render)  # 250 pods have some 25,000 metrics


def _add_container(
    message: cri.PodSandboxMetrics, sandbox: Sandbox, live: Container, values: Sequence[Value], written: Usage | None
) -> None:
    target = message.container_metrics.add(container_id=live.record.id)
    labels = _labels(sandbox, live)
    _add(target, labels, _of_record(live))
    _add(target, labels, values)
    device = next((value.labels for value in values if value.metric is metrics.FS_LIMIT), None)
    if written is not None and device is not None:
        _add(target, labels, [Value(metrics.FS_USAGE, written.size, device)], timestamp=int(written.time * 1e9))


def _add(target: cri.PodSandboxMetrics | cri.ContainerMetrics, labels: list[str], values: Iterable[Value], *, timestamp: int = 0) -> None:
    for metric, number, own in values:
        target.metrics.add(
            name=metric.name,
            metric_type=_KINDS[metric.kind],
            label_values=[*labels, *own],
            timestamp=timestamp,
            value=cri.UInt64Value(value=number),
        )


def _labels(sandbox: Sandbox, live: Container | None = None) -> list[str]:
    """The values for `descriptors.BASE`."""
    metadata = sandbox.record.config.metadata
    if live is None:
        return [metadata.namespace, metadata.name, "", sandbox.record.id, ""]
    return [metadata.namespace, metadata.name, live.record.config.metadata.name, live.record.id, live.record.image_name]


def _network(interfaces: Sequence[Interface]) -> list[Value]:
    return [
        Value(metric, number, (interface.name,))
        for interface in interfaces
        for metric, number in (
            (metrics.RECEIVED_BYTES, interface.rx_bytes),
            (metrics.RECEIVED_PACKETS, interface.rx_packets),
            (metrics.RECEIVED_ERRORS, interface.rx_errors),
            (metrics.RECEIVED_DROPPED, interface.rx_dropped),
            (metrics.SENT_BYTES, interface.tx_bytes),
            (metrics.SENT_PACKETS, interface.tx_packets),
            (metrics.SENT_ERRORS, interface.tx_errors),
            (metrics.SENT_DROPPED, interface.tx_dropped),
        )
    ]


def _of_record(live: Container) -> list[Value]:
    """What is known without reading anything. CPU limits that were not asked for are left out; of memory, 0 means no limit."""
    record, resources = live.record, live.record.spec["linux"]["resources"]
    cpu, memory = resources.get("cpu", {}), resources.get("memory", {})
    reserved = resources.get("unified", {}).get("memory.min", "0")
    optional = (
        (metrics.SPEC_CPU_PERIOD, cpu.get("period", 0)),
        (metrics.SPEC_CPU_QUOTA, cpu.get("quota", 0)),
        (metrics.SPEC_CPU_SHARES, cpu.get("shares", 0)),
    )
    return [
        Value(metrics.LAST_SEEN, int(time.time())),
        Value(metrics.START_TIME, record.started_at // 10**9),
        Value(metrics.SPEC_MEMORY_LIMIT, max(0, memory.get("limit", 0))),
        Value(metrics.SPEC_MEMORY_SWAP_LIMIT, max(0, memory.get("swap", 0))),
        Value(metrics.SPEC_MEMORY_RESERVATION, int(reserved) if reserved.isdecimal() else 0),
        *(Value(metric, number) for metric, number in optional if number > 0),
    ]
