"""ExecSync: run a command in a container, wait for it, hand back what it printed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any

from agent import failpoints, log, timeouts
from agent.aio import within
from agent.errdefs import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, OrlopError
from agent.events import Exit
from agent.identifiers import new_id
from agent.logs.capture import Capture
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.runtime.v2.task import ExecProcess
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def exec_sync(pods: Pods, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
    """CRI ExecSync; `timeout` in seconds, 0 for none. At most 16 MiB per stream are kept, the rest is read and dropped.

    Raises:
        InvalidArgument: no command, or a negative timeout.
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        DeadlineExceeded: the timeout ran out; the process was killed.
        Unknown: the engine could not start the command; the message is the engine's.
    """
    if not request.cmd:
        raise InvalidArgument("cmd must not be empty")
    if request.timeout < 0:
        raise InvalidArgument(f"timeout {request.timeout} must not be negative")
    record = pods.registry.containers.get(request.container_id).record
    if record.state is not ContainerState.RUNNING:
        raise FailedPrecondition(f"container {record.id} is {record.state}: only in a running one can something be run")
    # Detached: an exec is taken down in several steps, which a kubelet that gave up must not cut in two.
    return await pods.supervisor.detached(_exec(pods, record, list(request.cmd), request.timeout or None), name=f"ExecSync in {record.id}")


async def _exec(pods: Pods, record: ContainerRecord, command: list[str], timeout: float | None) -> cri.ExecSyncResponse:
    exec_id = new_id()
    process_spec = {**record.spec["process"], "args": command, "terminal": False}
    capture = await Capture.open(pods.state_dir, exec_id)
    try:
        await failpoints.hit("pods.exec_sync.exec")
        process = await pods.tasks.get(record.id).exec(
            exec_id, process_spec, stdin="", stdout=capture.stdio.stdout, stderr=capture.stdio.stderr, terminal=False
        )
        try:
            await process.start()
            exit_ = await _finish(process, timeout, command)
            await capture.drained(timeouts.EXEC_DRAIN)
        finally:
            await _quietly(process.delete)
    finally:
        await capture.close()
    return cri.ExecSyncResponse(stdout=capture.stdout, stderr=capture.stderr, exit_code=exit_.status)


async def _finish(process: ExecProcess, timeout: float | None, command: list[str]) -> Exit:
    if timeout is None:
        return await process.wait()
    try:
        return await within(timeout, process.wait(), f"command {command[0]!r}")
    except DeadlineExceeded:
        await _quietly(lambda: process.kill(signal.SIGKILL))
        await _quietly(lambda: within(timeouts.EXIT_AFTER_KILL, process.wait(), "exit of a killed exec"))
        raise


async def _quietly(step: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """A step of the taking down: its failure is logged, and doesn't hide why we are here."""
    try:
        await step()
    except NotFound:
        return
    except OrlopError as error:
        _log.warning("exec not taken down in order", error=str(error))
