"""What the daemon does at start with the pods it finds: nothing runs again that ran before, nothing is forgotten.

Order: records are in memory first, so that List and Status answer at once; then the shims are loaded (the manager's work),
each under its own budget; then every container's state is set right, logs are read again, pins are checked; what the
ledger owns without an owner, because a crash came in the middle of a verb, is released.
"""

from __future__ import annotations

import time
from pathlib import Path

from agent import log
from agent.aio import together
from agent.errdefs import NotFound, OrlopError
from agent.events import UNKNOWN_STATUS, Exit
from agent.pods.container import REASON_START_ERROR, REASON_UNKNOWN, START_ERROR_STATUS, ContainerState
from agent.pods.context import Pods
from agent.pods.exits import drain_log, record_exit, release_task
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxEvent, SandboxState
from agent.store.kinds import Kind
from agent.store.ledger import Resource

_log = log.get("pods")


async def recover(pods: Pods) -> None:
    """Bring records, ledger and node together again. One bad shim, record or pin delays only its own pod."""
    await together(*(check_pins(pods, sandbox) for sandbox in pods.registry.sandboxes))
    await together(*(_adopt_log(pods, live) for live in pods.registry.containers))
    await pods.tasks.load_existing_tasks()
    await together(*(_recover_container(pods, live) for live in pods.registry.containers))
    await _release_unowned(pods)
    await pods.tasks.cleanup_work_dirs()


async def check_pins(pods: Pods, sandbox: Sandbox) -> None:
    """A READY sandbox whose namespace pin is missing, or another inode, is LOST."""
    record = sandbox.record
    if record.state is not SandboxState.READY:
        return
    for kind, pin in record.pins.items():
        inode = await pods.namespaces.inode(Path(pin.path))
        if inode != pin.inode:
            _log.warning("namespace pin is gone: the sandbox is not ready any more", sandbox=record.id, namespace=kind, pin=pin.path)
            await pods.registry.sandboxes.update(sandbox, record.after(SandboxEvent.PIN_GONE))
            return


async def _adopt_log(pods: Pods, live: Container) -> None:
    """Read the container's pipes again, also those of one that ended meanwhile: its last lines are still in them."""
    record = live.record
    if pods.ledger.get(Kind.LOG, record.id) is None:
        return
    try:
        await pods.logs.adopt(record.id, Path(record.log_path) if record.log_path else None, record.config.tty)
    except OrlopError as error:
        _log.warning("log not adopted", container=record.id, error=str(error))


async def _recover_container(pods: Pods, live: Container) -> None:
    record = live.record
    if record.state in (ContainerState.CREATED, ContainerState.EXITED):
        return
    async with pods.locks.hold(record.id):
        if live.record.state is ContainerState.EXITED:
            return
        if live.record.state is ContainerState.STARTING:
            lost = Exit(
                START_ERROR_STATUS,
                time.time_ns(),
                reason=REASON_START_ERROR,
                message="the runtime was restarted while the container started",
            )
        elif _has_task(pods, record.id):
            return
        else:
            lost = Exit(
                UNKNOWN_STATUS,
                time.time_ns(),
                reason=REASON_UNKNOWN,
                message="the container's task was gone when the runtime started again",
            )
        await drain_log(pods, record.id)
        await record_exit(pods, live, lost)
    await release_task(pods, record.id)


def _has_task(pods: Pods, container_id: str) -> bool:
    try:
        pods.tasks.get(container_id)
    except NotFound:
        return False
    return True


async def _release_unowned(pods: Pods) -> None:
    """Release what a crash left: resources of a sandbox or container without a record, and tasks of ended containers."""
    leftover = [resource for resource in pods.ledger.all() if not _is_owned(pods, resource)]
    if not leftover:
        return
    _log.info("releasing what the previous run left", resources=[f"{resource.kind} {resource.key}" for resource in leftover])
    for resource, error in await pods.releases.release(leftover):
        _log.warning("not released yet, will be tried again", kind=resource.kind, key=resource.key, error=str(error))


def _is_owned(pods: Pods, resource: Resource) -> bool:
    if resource.state in ("releasing", "failed"):
        return False
    if resource.container:
        live = pods.registry.containers.find(resource.container)
        if live is None:
            return False
        if resource.kind is Kind.EXEC:  # nobody waits for its answer any more
            return False
        if resource.kind in (Kind.TASK, Kind.LOG, Kind.FIFO):
            return live.record.state is ContainerState.RUNNING
        return True
    sandbox = pods.registry.sandboxes.find(resource.sandbox)
    return sandbox is not None
