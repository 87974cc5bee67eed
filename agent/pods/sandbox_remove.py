"""RemovePodSandbox: stop what runs, remove the containers, release what is left, forget the record."""

from __future__ import annotations

from agent import log
from agent.aio import together
from agent.errdefs import FailedPrecondition
from agent.pods import container_remove, sandbox_stop
from agent.pods.context import Pods
from agent.pods.registry import Sandbox
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def remove_pod_sandbox(pods: Pods, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
    """CRI RemovePodSandbox. An unknown sandbox is a removed one; running containers are killed.

    It succeeds with mounts, bundles and snapshots still pending in the ledger, not with processes or addresses.

    Raises:
        FailedPrecondition: a process or an address could not be released yet, or a CreateContainer doesn't end.
    """
    sandbox = pods.registry.sandboxes.find(request.pod_sandbox_id)
    if sandbox is not None:
        await pods.once(f"RemovePodSandbox {sandbox.record.id}", lambda: _remove(pods, sandbox))
    return cri.RemovePodSandboxResponse()


async def _remove(pods: Pods, sandbox: Sandbox) -> None:
    sandbox_id = sandbox.record.id
    await pods.once(f"StopPodSandbox {sandbox_id}", lambda: sandbox_stop.stop(pods, sandbox))
    if sandbox.in_flight:  # what it is making would be nobody's, if its ledger entry went before
        raise FailedPrecondition(f"sandbox {sandbox_id} is stopped, but a CreateContainer in it has not ended yet; try again later")
    await together(*(container_remove.remove(pods, live) for live in pods.registry.containers_of(sandbox_id)))
    failures = await pods.releases.release_owned(sandbox=sandbox_id)
    sandbox_stop.refuse_if_held(f"sandbox {sandbox_id}", failures)
    await pods.registry.sandboxes.remove(sandbox)
    _log.info("sandbox removed", sandbox=sandbox_id)
