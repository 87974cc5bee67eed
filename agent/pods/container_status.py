"""ContainerStatus, ListContainers, StreamContainers: from memory, never waiting."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from agent.pods.container import ContainerRecord
from agent.pods.context import Pods
from agent.pods.registry import Container
from agent.pods.signals import to_cri
from cri.api import api_pb2 as cri


async def container_status(pods: Pods, request: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
    """CRI ContainerStatus; `verbose` adds the OCI spec and the ledger's view of the container.

    Raises:
        NotFound: no such container.
    """
    record = pods.registry.containers.get(request.container_id).record
    info = {}
    if request.verbose:
        details = {
            "sandboxID": record.sandbox_id,
            "pid": record.pid,
            "state": record.state,
            "runtimeSpec": record.spec,
            "ledger": [resource.to_json() for resource in pods.ledger.owned(container=record.id)],
        }
        info["info"] = json.dumps(details)
    return cri.ContainerStatusResponse(status=to_status(record), info=info)


def to_status(record: ContainerRecord) -> cri.ContainerStatus:
    """The container as ContainerStatus, PodSandboxStatus and events show it."""
    user = record.spec.get("process", {}).get("user", {})
    return cri.ContainerStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=record.cri_state,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=cri.ImageSpec(image=record.image_name),
        image_ref=record.image_id,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=record.config.labels,
        annotations=record.config.annotations,
        mounts=record.config.mounts,
        log_path=record.log_path,
        resources=cri.ContainerResources(linux=record.config.linux.resources),
        user=cri.ContainerUser(
            linux=cri.LinuxContainerUser(uid=user.get("uid", 0), gid=user.get("gid", 0), supplemental_groups=user.get("additionalGids", []))
        ),
        stop_signal=to_cri(record.stop_signal),
    )


async def list_containers(pods: Pods, request: cri.ListContainersRequest) -> bytes:
    """CRI ListContainers, as wire bytes; an empty filter lists all."""
    return pods.registry.containers.items(_selected(pods, request.filter))


async def stream_containers(pods: Pods, request: cri.StreamContainersRequest) -> AsyncGenerator[bytes, None]:
    """CRI StreamContainers: ListContainers in several messages, for nodes whose list is too long for one."""
    for chunk in pods.registry.containers.chunks(_selected(pods, request.filter)):
        yield chunk


def _selected(pods: Pods, wanted: cri.ContainerFilter) -> list[Container]:
    return [live for live in pods.registry.containers if _matches(live, wanted)]


def _matches(live: Container, wanted: cri.ContainerFilter) -> bool:
    record = live.record
    return (
        record.id.startswith(wanted.id)
        and record.sandbox_id.startswith(wanted.pod_sandbox_id)
        and (not wanted.HasField("state") or wanted.state.state == record.cri_state)
        and all(record.config.labels.get(key) == value for key, value in wanted.label_selector.items())
    )
