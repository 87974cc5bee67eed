"""ReopenContainerLog: after the kubelet moved the file away."""

from __future__ import annotations

from agent.errdefs import FailedPrecondition
from agent.pods.container import ContainerState
from agent.pods.context import Pods
from cri.api import api_pb2 as cri


async def reopen_container_log(pods: Pods, request: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
    """CRI ReopenContainerLog.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
    """
    record = pods.registry.containers.get(request.container_id).record
    if record.state is not ContainerState.RUNNING:
        raise FailedPrecondition(f"container {record.id} is {record.state}: only a running container's log is reopened")
    if record.log_path:
        await pods.logs.reopen(record.id)
    return cri.ReopenContainerLogResponse()
