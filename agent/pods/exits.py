"""What happens when a container's init ends, whoever notices: drain the log, record the exit once, release the task.

The v2 manager publishes each exit once; here one task per exit acts on it, under the container's lock. Recording comes
before freeing: a slow unmount must not delay an init container's exit, and what can't be freed stays in the ledger
(decisions.md 13).
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from dataclasses import replace

from agent import failpoints, log, timeouts
from agent.aio import within
from agent.errdefs import NotFound, OrlopError
from agent.events import UNKNOWN_STATUS, Event, Exit, Subscription, TaskExit, TaskOOM
from agent.pods import oom
from agent.pods.container import (
    REASON_COMPLETED,
    REASON_ERROR,
    REASON_OOM,
    REASON_UNKNOWN,
    ContainerEvent,
    ContainerState,
)
from agent.pods.context import Pods
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxEvent, SandboxState
from agent.runtime.v2.task import Task
from agent.store.kinds import Kind

_log = log.get("pods")
_OF_A_TASK = (Kind.TASK, Kind.LOG, Kind.FIFO)
_SIGKILLED = 137
_RETRY = 1.0
"""Seconds."""


async def watch(pods: Pods, subscription: Subscription) -> None:
    """Act on task events until the subscription is closed; each exit in a task of its own."""
    async for event in subscription:
        try:
            await _act(pods, event)
        except Exception as error:  # the next event is another container's
            _log.error("event not acted on", what=str(event), error=str(error), exc_info=error)


async def _act(pods: Pods, event: Event) -> None:
    match event:
        case TaskExit(container_id=container_id, exit=exit_):
            pods.supervisor.start(_exited(pods, container_id, exit_), name=f"exit of {container_id}")
        case TaskOOM(container_id=container_id):
            await _out_of_memory(pods, container_id)
        case _:
            pass


async def _exited(pods: Pods, container_id: str, exit_: Exit) -> None:
    live = pods.registry.containers.find(container_id)
    if live is None:
        await _sandbox_task_exited(pods, container_id)
        return
    while not await _recorded(pods, live, exit_):
        await asyncio.sleep(_RETRY)
    await release_task(pods, container_id)


async def _recorded(pods: Pods, live: Container, exit_: Exit) -> bool:
    """An exit is told once: one that couldn't be recorded would be a container that runs for ever, so that it is tried again."""
    container_id = live.record.id
    try:
        async with pods.locks.hold(container_id):
            await drain_log(pods, container_id)
            await failpoints.hit("pods.exits.record")
            await record_exit(pods, live, exit_)
    except (OrlopError, OSError) as error:
        _log.error("exit not recorded yet", container=container_id, error=str(error))
        return False
    return True


async def record_lost_exit(pods: Pods, live: Container) -> bool:
    """Whether the container has ended without anybody's having recorded it, which is made good here.

    Whatever fails on the way from its end to the record must not leave a container whose stop costs the pod its shim.
    """
    task = pods.tasks.find(live.record.id)
    if task is not None and task.exited is None:
        return False
    unknown = Exit(UNKNOWN_STATUS, time.time_ns(), reason=REASON_UNKNOWN, message="the container has ended; its exit status is lost")
    async with pods.locks.hold(live.record.id):
        await record_exit(pods, live, unknown if task is None or task.exited is None else task.exited)
    await release_task(pods, live.record.id)
    return True


async def kill_and_wait(task: Task) -> None:
    """Kill all processes of a container and see its init end.

    Raises:
        DeadlineExceeded, Closed ...: no end, or no answer; nothing is known then.
    """
    with suppress(NotFound):
        await task.kill(signal.SIGKILL, all=True)
    await within(timeouts.EXIT_AFTER_KILL, task.wait(), f"the exit of container {task.id} after SIGKILL")


async def drain_log(pods: Pods, container_id: str) -> None:
    """Read what the container wrote last, for a bounded time: Task.Delete closes the pipes for good."""
    try:
        await pods.logs.drain(container_id, timeouts.LOG_DRAIN)
    except (OrlopError, OSError) as error:
        _log.warning("log not drained", container=container_id, error=str(error))


async def record_exit(pods: Pods, live: Container, exit_: Exit) -> None:
    """Make the exit the container's status, once; later ones are ignored. The caller holds the container's lock."""
    if live.record.state is ContainerState.EXITED:
        return
    reason = exit_.reason
    if exit_.status == _SIGKILLED and (live.record.oom or await oom.killed(pods, live)):
        reason = REASON_OOM
    record = live.record.after(
        ContainerEvent.EXIT,
        exit_code=exit_.status,
        finished_at=exit_.exited_at or time.time_ns(),
        reason=reason or (REASON_ERROR if exit_.status else REASON_COMPLETED),
        message=exit_.message,
    )
    await pods.registry.containers.update(live, record)
    live.exited.set()
    _log.info("container exited", container=record.id, status=record.exit_code, reason=record.reason)


async def release_task(pods: Pods, container_id: str) -> None:
    """Release what only a running container needs. What fails stays in the ledger and is retried there."""
    owned = [resource for resource in pods.ledger.owned(container=container_id) if resource.kind in _OF_A_TASK]
    for resource, error in await pods.releases.release(owned):
        _log.warning("not released yet, will be tried again", kind=resource.kind, container=container_id, error=str(error))


async def _out_of_memory(pods: Pods, container_id: str) -> None:
    """Flag it for the exit to come; an event that is late corrects the exit it belongs to."""
    live = pods.registry.containers.find(container_id)
    if live is None or live.record.oom:
        return
    record = replace(live.record, oom=True)
    if record.state is ContainerState.EXITED and record.exit_code == _SIGKILLED:
        record = replace(record, reason=REASON_OOM)
    await pods.registry.containers.update(live, record)


async def _sandbox_task_exited(pods: Pods, sandbox_id: str) -> None:
    """A pod whose sandbox is a task lives as long as that task."""
    sandbox = pods.registry.sandboxes.find(sandbox_id)
    if sandbox is not None:
        await check_task(pods, sandbox)


async def check_task(pods: Pods, sandbox: Sandbox) -> None:
    """A READY sandbox that is a task, and whose task has ended, is LOST. Looked at when the task's exit comes, and when the
    sandbox gets its record: an exit before that finds no sandbox."""
    record = sandbox.record
    if not record.has_task or record.state is not SandboxState.READY:
        return
    task = pods.tasks.find(record.id)
    if task is None or task.exited is not None:
        _log.warning("the sandbox's task ended: the sandbox is not ready any more", sandbox=record.id)
        await pods.registry.sandboxes.update(sandbox, record.after(SandboxEvent.PIN_GONE))
