"""PodSandboxStatus, ListPodSandbox, StreamPodSandboxes: from memory, never waiting."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.json_format import MessageToDict

from agent.pods import container_status
from agent.pods.context import Pods
from agent.pods.registry import Sandbox
from agent.pods.sandbox import SandboxRecord
from cri.api import api_pb2 as cri


async def pod_sandbox_status(pods: Pods, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
    """CRI PodSandboxStatus; `verbose` adds pins, IPs, resources and the ledger's view of the pod.

    Raises:
        NotFound: no such sandbox.
    """
    record = pods.registry.sandboxes.get(request.pod_sandbox_id).record
    info = {}
    if request.verbose:
        details = {
            "pid": record.pid,
            "state": record.state,
            "pins": {kind: {"path": pin.path, "inode": pin.inode} for kind, pin in record.pins.items()},
            "ips": list(record.ips),
            "cgroupParent": record.cgroup_parent,
            "overhead": _as_json(record.config.linux.overhead),
            "resources": _as_json(record.config.linux.resources),
            "ledger": [resource.to_json() for resource in pods.ledger.owned(sandbox=record.id)],
        }
        info["info"] = json.dumps(details)
    return cri.PodSandboxStatusResponse(
        status=to_status(record),
        info=info,
        containers_statuses=[container_status.to_status(live.record) for live in pods.registry.containers_of(record.id)],
        timestamp=time.time_ns(),
    )


def _as_json(resources: cri.LinuxContainerResources) -> dict[str, Any]:
    return MessageToDict(resources, preserving_proto_field_name=True)


def to_status(record: SandboxRecord) -> cri.PodSandboxStatus:
    """The sandbox as PodSandboxStatus and events show it."""
    status = cri.PodSandboxStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=record.cri_state,
        created_at=record.created_at,
        linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=record.namespace_options)),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.handler,
    )
    if record.ips and record.cri_state == cri.SANDBOX_READY:
        status.network.ip = record.ips[0]
        status.network.additional_ips.extend(cri.PodIP(ip=ip) for ip in record.ips[1:])
    return status


async def list_pod_sandbox(pods: Pods, request: cri.ListPodSandboxRequest) -> bytes:
    """CRI ListPodSandbox, as wire bytes; an empty filter lists all."""
    return pods.registry.sandboxes.items(_selected(pods, request.filter))


async def stream_pod_sandboxes(pods: Pods, request: cri.StreamPodSandboxesRequest) -> AsyncGenerator[bytes, None]:
    """CRI StreamPodSandboxes: ListPodSandbox in several messages, for nodes whose list is too long for one."""
    for chunk in pods.registry.sandboxes.chunks(_selected(pods, request.filter)):
        yield chunk


def _selected(pods: Pods, wanted: cri.PodSandboxFilter) -> list[Sandbox]:
    return [live for live in pods.registry.sandboxes if _matches(live, wanted)]


def _matches(live: Sandbox, wanted: cri.PodSandboxFilter) -> bool:
    record = live.record
    return (
        record.id.startswith(wanted.id)
        and (not wanted.HasField("state") or wanted.state.state == record.cri_state)
        and all(record.config.labels.get(key) == value for key, value in wanted.label_selector.items())
    )
