"""ExecSync: run a command in a container, wait for it, hand back what it printed."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from agent import failpoints, log, timeouts
from agent.aio import within
from agent.errdefs import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, OrlopError
from agent.events import Exit
from agent.identifiers import new_id
from agent.logs.capture import Capture
from agent.pods import checks
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.runtime.v2.task import ExecProcess
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from cri.api import api_pb2 as cri

_log = log.get("pods")

_ANSWER = (16 << 20) - 1024
"""Bytes of output in one answer: a kubelet takes no message above 16 MiB, and one that is too large fails the whole call."""
_LAST_WORDS = 0.5
"""Seconds for reading what is in the pipes when the command ended just in time."""


async def exec_sync(pods: Pods, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
    """CRI ExecSync; `timeout` in seconds, 0 for none. Output beyond 16 MiB in all is read and dropped.

    Raises:
        InvalidArgument: no command, one that holds NUL, or a negative timeout.
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        DeadlineExceeded: the timeout ran out; the process was killed.
        Unknown: the engine could not start the command; the message is the engine's.
    """
    checks.command(list(request.cmd))
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
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    await pods.ledger.intend(Intent(Kind.EXEC, exec_id, sandbox=record.sandbox_id, container=record.id))
    capture = None
    try:
        capture = await Capture.open(pods.state_dir, exec_id)
        await failpoints.hit("pods.exec_sync.exec")
        process = await _begin(pods, record, exec_id, process_spec, capture, timeout)
        exit_ = await _finish(process, deadline, command, timeout)
        await _drained(capture, deadline, command, exit_)
    finally:
        # While a background child holds the pipes, the shim's Delete takes up to 10 s: the answer doesn't wait for that.
        taken_down = pods.supervisor.start(_take_down(pods, exec_id, capture), name=f"end of exec {exec_id}")
        await asyncio.wait((taken_down,), timeout=timeouts.EXEC_END)
    stdout, stderr = _fitting(capture.stdout, capture.stderr)
    return cri.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=exit_.status)


async def _begin(
    pods: Pods, record: ContainerRecord, exec_id: str, process_spec: dict[str, Any], capture: Capture, timeout: float | None
) -> ExecProcess:
    """Register the command in the shim and start it. A shim that doesn't answer holds up a probe for its timeout at the most."""

    async def begin() -> ExecProcess:
        process = await pods.tasks.get(record.id).exec(
            exec_id, process_spec, stdin="", stdout=capture.stdio.stdout, stderr=capture.stdio.stderr, terminal=False
        )
        await process.start()
        return process

    budget = min(timeout or timeouts.EXEC_START, timeouts.EXEC_START)
    return await within(budget, begin(), f"the start of command {process_spec['args'][0]!r} in container {record.id}")


async def _finish(process: ExecProcess, deadline: float, command: list[str], timeout: float | None) -> Exit:
    if timeout is None:
        return await process.wait()
    try:
        return await within(max(0.0, deadline - time.monotonic()), process.wait(), "exit")
    except DeadlineExceeded as error:
        await _quietly(lambda: process.kill(signal.SIGKILL))
        await _quietly(lambda: within(timeouts.EXIT_AFTER_KILL, process.wait(), "exit of a killed exec"))
        raise DeadlineExceeded(f"command {command[0]!r} was killed: it ran longer than its timeout of {timeout:g} s") from error


async def _drained(capture: Capture, deadline: float, command: list[str], exit_: Exit) -> None:
    """Wait for the end of the output; what the command left running may hold it, but not beyond the caller's patience."""
    budget = max(_LAST_WORDS, min(timeouts.EXEC_DRAIN, deadline - time.monotonic()))
    try:
        await capture.drained(budget)
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"command {command[0]!r} ended with {exit_.status}, but a process that it started still holds its output; waited {budget:.3g} s"
        ) from error


def _fitting(stdout: bytes, stderr: bytes) -> tuple[bytes, bytes]:
    """What fits in one answer: of both streams at least half the room, if they need it."""
    stderr = stderr[: max(_ANSWER // 2, _ANSWER - len(stdout))]
    return stdout[: _ANSWER - len(stderr)], stderr


async def _take_down(pods: Pods, exec_id: str, capture: Capture | None) -> None:
    if capture is not None:
        await capture.close()
    if (owned := pods.ledger.get(Kind.EXEC, exec_id)) is not None:
        await pods.releases.release([owned])


async def _quietly(step: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """A step of the taking down: its failure is logged, and doesn't hide why we are here."""
    try:
        await step()
    except NotFound:
        return
    except OrlopError as error:
        _log.warning("exec not taken down in order", error=str(error))
