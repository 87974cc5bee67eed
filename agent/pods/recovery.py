"""What the daemon does at start with the pods it finds: nothing runs again that ran before, nothing is forgotten.

Order: records are in memory first, so that List and Status answer at once; then it is known what tasks there are, and whose
processes live (the manager's work), and new pods can be made. Then each pod is sorted out beside the others: its shims are asked,
its containers' states set right, its logs read again, its pins checked; verbs on it wait for that (`settled`). What a crash in the
middle of a verb left is taken down beside them, as anything that is released. So a shim that doesn't answer, a record that can't be
read, a file system or a network plugin that hangs holds up its own pod only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

from google.protobuf.message import Message

from agent import log
from agent.aio import together
from agent.errdefs import OrlopError
from agent.events import UNKNOWN_STATUS, Exit
from agent.pods import container_remove
from agent.pods.container import REASON_START_ERROR, REASON_UNKNOWN, START_ERROR_STATUS, ContainerState
from agent.pods.context import Pods
from agent.pods.exits import check_task, drain_log, kill_and_wait, record_exit, release_task
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxEvent, SandboxState
from agent.store.kinds import Kind
from agent.store.ledger import Resource

_log = log.get("pods")

_RETRY = 1.0


async def recover(pods: Pods, known: asyncio.Event) -> None:
    """Bring records, ledger and node together again; `known` is set as soon as new pods can be made.

    Raises what `TaskManager.load_existing_tasks` raises: then nothing is known, and nothing may be changed.
    """
    await pods.tasks.load_existing_tasks()
    work_dirs = await pods.tasks.orphaned_work_dirs()
    # From here to `known` without a wait: what verbs make from then on is in none of these.
    nobodys = [resource for resource in pods.ledger.all() if not resource.sandbox]
    found = _sandboxes(pods)
    pods.unsettled = {sandbox_id: asyncio.Event() for sandbox_id in found}
    pods.supervisor.start(_release(pods, nobodys), name="release of what pulls left")
    known.set()
    await together(*(_settle(pods, sandbox_id) for sandbox_id in found))
    await apart("work dirs", pods.tasks.remove_work_dirs(work_dirs))


async def settled(pods: Pods, request: Message) -> None:
    """Wait until the pod that a call is about is sorted out; all of them if nobody knows what it names.

    A call that names neither a sandbox nor a container is about nothing that was there before.
    """
    for name in filter(None, (getattr(request, field, "") for field in ("pod_sandbox_id", "container_id"))):
        container = pods.registry.containers.find(name)
        sandbox_id = name if container is None else container.record.sandbox_id
        if sandbox_id in pods.unsettled:
            await pods.unsettled[sandbox_id].wait()
        elif pods.registry.sandboxes.find(sandbox_id) is None:
            for event in list(pods.unsettled.values()):
                await event.wait()


def _sandboxes(pods: Pods) -> list[str]:
    """All that there is a trace of: in its own record, in that of a container, in the ledger."""
    ids = [live.record.id for live in pods.registry.sandboxes]
    ids += [live.record.sandbox_id for live in pods.registry.containers]
    ids += [resource.sandbox for resource in pods.ledger.all() if resource.sandbox]
    return list(dict.fromkeys(ids))


async def _settle(pods: Pods, sandbox_id: str) -> None:
    try:
        await apart(f"pod {sandbox_id}", _sort_out(pods, sandbox_id))
    finally:
        pods.unsettled.pop(sandbox_id).set()


async def _sort_out(pods: Pods, sandbox_id: str) -> None:
    containers = [live for live in pods.registry.containers if live.record.sandbox_id == sandbox_id]
    await together(*(apart(f"the log of {live.record.id}", _adopt_log(pods, live)) for live in containers))
    await pods.tasks.loaded(sandbox_id)
    if (sandbox := pods.registry.sandboxes.find(sandbox_id)) is not None:
        await apart(f"the pins of sandbox {sandbox_id}", check_pins(pods, sandbox))
        await apart(f"the task of sandbox {sandbox_id}", check_task(pods, sandbox))
    starting = [live for live in containers if live.record.state is ContainerState.STARTING]
    for live in starting:  # each has its container's lock before a verb can
        pods.supervisor.start(_roll_back_start(pods, live), name=f"roll back of the start of {live.record.id}")
    for live in containers if sandbox is None else []:
        pods.supervisor.start(_remove(pods, live), name=f"removal of {live.record.id}, whose sandbox is gone")
    running = [live for live in containers if live not in starting]
    await together(*(apart(f"container {live.record.id}", _recover_running(pods, live)) for live in running))
    leftover = [resource for resource in pods.ledger.owned(sandbox=sandbox_id) if not _is_owned(pods, resource)]
    pods.supervisor.start(_release(pods, leftover), name=f"release of what the previous run left of {sandbox_id}")


async def apart(what: str, work: Awaitable[None]) -> None:
    """Do it; whatever goes wrong with it is told, and is no reason to stop with the others."""
    try:
        await work
    except Exception as error:
        _log.error("could not be checked", what=what, error=str(error), exc_info=error)


async def check_pins(pods: Pods, sandbox: Sandbox) -> None:
    """A READY sandbox whose namespace pin is missing, or another inode, is LOST."""
    for kind, pin in sandbox.record.pins.items():
        inode = await pods.namespaces.inode(Path(pin.path))
        if sandbox.record.state is not SandboxState.READY:  # it may have changed while we looked
            return
        if inode != pin.inode:
            record = sandbox.record
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


async def _roll_back_start(pods: Pods, live: Container) -> None:
    """The container may run, be created, or be nothing yet: nobody was told that it runs, so it never did.

    Its exit is told when its processes have ended, not before: the kubelet would start a second one beside them. A shim that
    doesn't answer is asked again and again; a StopContainer meanwhile goes the whole ladder.
    """
    container_id = live.record.id
    async with pods.locks.hold(container_id):
        while (task := pods.tasks.find(container_id)) is not None and task.pid and task.exited is None:
            try:
                await kill_and_wait(task)
            except OrlopError as error:
                _log.warning("not killed yet, tried again", container=container_id, error=str(error))
                await asyncio.sleep(_RETRY)
        await drain_log(pods, container_id)
        message = "the runtime was restarted while the container started"
        await record_exit(pods, live, Exit(START_ERROR_STATUS, time.time_ns(), reason=REASON_START_ERROR, message=message))
    await release_task(pods, container_id)


async def _remove(pods: Pods, live: Container) -> None:
    """Its sandbox's record is lost (torn, or removed right before the crash), so no client could take it down with its pod."""
    _log.error("a container without a sandbox is removed", container=live.record.id, sandbox=live.record.sandbox_id)
    while live.record.id in pods.registry.containers:
        try:
            await container_remove.remove(pods, live)
        except OrlopError as error:
            _log.warning("not removed yet, tried again", container=live.record.id, error=str(error))
            await asyncio.sleep(_RETRY)


async def _recover_running(pods: Pods, live: Container) -> None:
    """One that ran, but has no task any more: it ended, and nobody knows how."""
    container_id = live.record.id
    if live.record.state is not ContainerState.RUNNING or pods.tasks.find(container_id) is not None:
        return
    async with pods.locks.hold(container_id):
        await drain_log(pods, container_id)
        message = "the container's task was gone when the runtime started again"
        await record_exit(pods, live, Exit(UNKNOWN_STATUS, time.time_ns(), reason=REASON_UNKNOWN, message=message))
    await release_task(pods, container_id)


async def _release(pods: Pods, leftover: list[Resource]) -> None:
    if not leftover:
        return
    _log.info("releasing what the previous run left", resources=[f"{resource.kind} {resource.key}" for resource in leftover])
    for resource, error in await pods.releases.release(leftover):
        _log.warning("not released yet, will be tried again", kind=resource.kind, key=resource.key, error=str(error))


def _is_owned(pods: Pods, resource: Resource) -> bool:
    """Whether there is a sandbox or container that needs it. Of an ended one its task and log are still to be released."""
    if resource.state in ("releasing", "failed"):
        return False
    if resource.container:
        live = pods.registry.containers.find(resource.container)
        if live is None:
            return False
        if resource.kind is Kind.EXEC:  # nobody waits for its answer any more
            return False
        if resource.kind in (Kind.TASK, Kind.LOG, Kind.FIFO):
            return live.record.state in (ContainerState.STARTING, ContainerState.RUNNING)
        return True
    sandbox = pods.registry.sandboxes.find(resource.sandbox)
    return sandbox is not None
