"""StartContainer: stdio, the task in the shim, and go.

A container that can't be started is EXITED with reason StartError, and what was made for it is released; the kubelet
makes a new one.
"""

from __future__ import annotations

import time
from pathlib import Path

from agent import failpoints, log
from agent.aio import together
from agent.errdefs import FailedPrecondition, OrlopError
from agent.events import Exit
from agent.pods import oom
from agent.pods.container import REASON_START_ERROR, START_ERROR_STATUS, ContainerEvent, ContainerState
from agent.pods.container_create import enter, insist_on_ready, pid_namespace
from agent.pods.context import Pods
from agent.pods.exits import kill_and_wait, record_exit, release_task
from agent.pods.registry import Container, Sandbox
from agent.runtime.v2.options import is_runc
from agent.runtime.v2.task import CreateTask
from agent.store.kinds import Kind
from agent.store.ledger import Intent, State
from cri.api import api_pb2 as cri

_log = log.get("pods")
_OF_A_START = (Kind.FIFO, Kind.LOG, Kind.TASK)


async def start_container(pods: Pods, request: cri.StartContainerRequest) -> cri.StartContainerResponse:
    """CRI StartContainer.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it was started already, its sandbox is not ready, or whose PID namespace it is to join has ended.
        Unknown: the engine refused; the message is the engine's.
    """
    live = pods.registry.containers.get(request.container_id)
    sandbox = pods.registry.sandboxes.get(live.record.sandbox_id)
    await pods.once(f"StartContainer {live.record.id}", lambda: _start(pods, sandbox, live))
    return cri.StartContainerResponse()


async def _start(pods: Pods, sandbox: Sandbox, live: Container) -> None:
    container_id = live.record.id
    enter(sandbox)
    try:
        async with pods.locks.hold(container_id):
            if live.removing or container_id not in pods.registry.containers or not _has_rootfs(pods, container_id):
                raise FailedPrecondition(f"container {container_id} is being removed")
            starting = live.record.after(ContainerEvent.START)
            try:
                await together(
                    pods.registry.containers.update(live, starting),
                    pods.ledger.intend(
                        *(Intent(kind, container_id, sandbox=sandbox.record.id, container=container_id) for kind in _OF_A_START)
                    ),
                )
                await _run_task(pods, sandbox, live)
            except Exception as error:
                await _end_task(pods, sandbox, container_id, error)
                failed = Exit(START_ERROR_STATUS, time.time_ns(), reason=REASON_START_ERROR, message=str(error))
                await record_exit(pods, live, failed)
                await release_task(pods, container_id)
                raise
    finally:
        sandbox.left()
    _log.info("container started", sandbox=sandbox.record.id, container=container_id, pid=live.record.pid)


def _has_rootfs(pods: Pods, container_id: str) -> bool:
    """Not where a removal was cut off, by a crash or a failure: its layer is gone by now, or on its way."""
    snapshot = pods.ledger.get(Kind.SNAPSHOT, container_id)
    return snapshot is not None and snapshot.state is State.HELD


async def _end_task(pods: Pods, sandbox: Sandbox, container_id: str, cause: Exception) -> None:
    """No process may be left when the exit is told. Where the shim doesn't see to it, the shim goes, too."""
    task = pods.tasks.find(container_id)
    if task is None or not task.pid or task.exited is not None:
        return
    try:
        await kill_and_wait(task)
    except OrlopError as error:
        cause.add_note(f"its shim was killed: {error}")
        await pods.tasks.kill_shim(sandbox.record.id)


async def _run_task(pods: Pods, sandbox: Sandbox, live: Container) -> None:
    record, handler = live.record, pods.handler(sandbox.record.handler)
    pid_namespace(pods, sandbox, record.config)  # asked again: its process may have ended since the create, the number be a stranger's
    await failpoints.hit("pods.container_start.stdio")
    stdio = await pods.logs.open(record.id, Path(record.log_path) if record.log_path else None, record.config.tty)
    await together(pods.ledger.hold(Kind.FIFO, record.id), pods.ledger.hold(Kind.LOG, record.id))
    await failpoints.hit("pods.container_start.create")
    insist_on_ready(sandbox)
    task = await pods.tasks.create(
        CreateTask(
            id=record.id,
            sandbox_id=sandbox.record.id,
            handler=handler,
            spec=record.spec,
            rootfs=list(record.rootfs),
            stdin="",
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=record.config.tty,
        )
    )
    cgroups = await pods.cgroups.of_process(task.pid) if is_runc(handler) else {}
    await oom.prepare(pods, live)
    await failpoints.hit("pods.container_start.start")
    await task.start()
    await failpoints.hit("pods.container_start.record")
    if live.record.state is ContainerState.STARTING:
        running = live.record.after(ContainerEvent.STARTED, started_at=time.time_ns(), pid=task.pid, cgroups=cgroups)
        await pods.registry.containers.update(live, running)
