"""StopPodSandbox: no new container, every container dead, then everything but the sandbox's record released.

The order between the kinds of resources is the ledger's: tasks, the shim, CNI DEL, namespaces (`agent.store.kinds`). CNI DEL
takes longest, and goes beside the tasks and the shim where no process is left in the pod's network (decisions.md 31).
Idempotent, and called many times by the kubelet; a call that runs is joined.
"""

from __future__ import annotations

import asyncio

from agent import log, timeouts
from agent.aio import together
from agent.errdefs import Busy, FailedPrecondition
from agent.pods import container_stop
from agent.pods.context import Pods
from agent.pods.registry import Sandbox
from agent.pods.sandbox import SandboxEvent, SandboxState
from agent.store.kinds import Kind
from agent.store.ledger import Resource
from cri.api import api_pb2 as cri

_log = log.get("pods")

PODS_OWN = frozenset(
    {Kind.TASK, Kind.LOG, Kind.FIFO, Kind.EXEC, Kind.SHIM, Kind.CNI, Kind.NETNS, Kind.IPCNS, Kind.UTSNS, Kind.SHM, Kind.CGROUP}
)
"""What StopPodSandbox releases; the rest (snapshots, files) is needed until RemovePodSandbox."""
MUST_GO = frozenset({Kind.SHIM, Kind.CNI})
"""What the kubelet must not believe gone while it isn't: processes and addresses (decisions.md 20)."""


async def stop_pod_sandbox(pods: Pods, request: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
    """CRI StopPodSandbox. An unknown sandbox is a stopped one.

    Raises:
        FailedPrecondition: processes or addresses could not be released yet; the agent goes on trying, and so may the caller.
    """
    sandbox = pods.registry.sandboxes.find(request.pod_sandbox_id)
    if sandbox is not None:
        await pods.once(f"StopPodSandbox {sandbox.record.id}", lambda: stop(pods, sandbox))
    return cri.StopPodSandboxResponse()


async def stop(pods: Pods, sandbox: Sandbox) -> None:
    """Stop a sandbox that may be in any state; the work behind StopPodSandbox and RemovePodSandbox."""
    sandbox_id = sandbox.record.id
    if sandbox.record.state is SandboxState.STOPPED and not _pending(pods, sandbox_id):
        return
    async with pods.locks.hold(sandbox_id):
        await pods.registry.sandboxes.update(sandbox, sandbox.record.after(SandboxEvent.STOP))
    await _await_in_flight(pods, sandbox)
    await together(*(container_stop.stop(pods, live, grace=0) for live in pods.registry.containers_of(sandbox_id)))
    await _leave_network(pods, sandbox)
    failures = await pods.releases.release(_pending(pods, sandbox_id))
    refuse_if_held(f"sandbox {sandbox_id}", failures)
    await pods.registry.sandboxes.update(sandbox, sandbox.record.after(SandboxEvent.RELEASED))
    _log.info("sandbox stopped", sandbox=sandbox_id)


async def _await_in_flight(pods: Pods, sandbox: Sandbox) -> None:
    """Creates and starts can't be cancelled: when they don't end, their shim is killed under them (decisions.md 21)."""
    try:
        async with asyncio.timeout(timeouts.IN_FLIGHT):
            await sandbox.idle.wait()
    except TimeoutError:
        _log.warning("killing the shim under a container that doesn't start", sandbox=sandbox.record.id)
        await pods.tasks.kill_shim(sandbox.record.id)
        await _no_longer(sandbox)


async def _no_longer(sandbox: Sandbox) -> None:
    """What a create still waits for now (a disk that hangs) is not in the shim. It finds the sandbox stopped and gives up."""
    try:
        async with asyncio.timeout(timeouts.IN_FLIGHT):
            await sandbox.idle.wait()
    except TimeoutError:
        _log.warning("stopping a sandbox although a create or start in it has not ended", sandbox=sandbox.record.id)


async def _leave_network(pods: Pods, sandbox: Sandbox) -> None:
    """Let the network's release not wait for tasks and shim, as far as these are known to have no process in it (invariant 6).

    Not where the sandbox is a task, which runs until it is released; nor while a process may yet join a container.
    """
    pending = _pending(pods, sandbox.record.id)
    if sandbox.record.has_task or sandbox.in_flight or any(resource.kind is Kind.EXEC for resource in pending):
        return
    for resource in pending:
        match resource.kind:
            case Kind.TASK:
                outside = await pods.tasks.has_ended(resource.key)
            case Kind.SHIM:
                outside = pods.tasks.shim_is_outside(resource.key)
            case _:
                continue
        if outside:
            pods.releases.no_longer_uses(resource.id, {Kind.CNI})


def _pending(pods: Pods, sandbox_id: str) -> list[Resource]:
    return [resource for resource in pods.ledger.owned(sandbox=sandbox_id) if resource.kind in PODS_OWN]


def refuse_if_held(what: str, failures: list[tuple[Resource, Exception]]) -> None:
    """Raise when something failed to go that the kubelet has to know about; the rest is retried from the ledger."""
    held = []
    for resource, error in failures:
        if resource.kind in MUST_GO or (resource.kind is Kind.TASK and not isinstance(error, Busy)):
            held.append(f"{resource.kind} {resource.key}: {error}")
        else:
            _log.warning("not released yet, will be tried again", kind=resource.kind, key=resource.key, error=str(error))
    if held:
        raise FailedPrecondition(f"{what} still holds " + "; ".join(held) + ". The agent goes on trying; `orlop audit` shows it")
