"""RemoveContainer: kill it if it runs, release everything it owned, forget it."""

from __future__ import annotations

from agent import log
from agent.pods import container_stop
from agent.pods.context import Pods
from agent.pods.registry import Container
from agent.pods.sandbox_stop import refuse_if_held
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def remove_container(pods: Pods, request: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
    """CRI RemoveContainer. An unknown container is a removed one; the log file stays, it is the kubelet's.

    Raises:
        FailedPrecondition: the container's process could not be ended yet.
    """
    live = pods.registry.containers.find(request.container_id)
    if live is not None:
        await pods.once(f"RemoveContainer {live.record.id}", lambda: remove(pods, live))
    return cri.RemoveContainerResponse()


async def remove(pods: Pods, live: Container) -> None:
    """The work behind RemoveContainer and RemovePodSandbox."""
    live.removing = True
    try:
        await _remove(pods, live)
    except BaseException:
        live.removing = False
        raise


async def _remove(pods: Pods, live: Container) -> None:
    container_id = live.record.id
    await container_stop.stop(pods, live, grace=0)
    failures = await pods.releases.release_owned(container=container_id)
    refuse_if_held(f"container {container_id}", failures)
    async with pods.locks.hold(container_id):
        if container_id in pods.registry.containers:
            await pods.registry.containers.remove(live)
    _log.info("container removed", container=container_id)
