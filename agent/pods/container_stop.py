"""StopContainer: the stop signal, a grace period, SIGKILL; and what comes after when even that shows no exit.

One task stops a container, however often the kubelet asks; a later call with a shorter grace shortens the deadline
(field-faults 22). No lock is held while it waits. The ladder of row 23: stop signal, SIGKILL by the shim, SIGKILL of the
whole cgroup, SIGKILL of the shim, whose cleanup then finds out what is left.
"""

from __future__ import annotations

import asyncio
import signal

from agent import failpoints, log, timeouts
from agent.aio import within
from agent.errdefs import DeadlineExceeded, InvalidArgument, NotFound, OrlopError
from agent.pods.container import ContainerState
from agent.pods.context import Pods
from agent.pods.exits import record_lost_exit
from agent.pods.registry import Container
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def stop_container(pods: Pods, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
    """CRI StopContainer; `timeout` is the grace period in seconds. An unknown or ended container is a stopped one.

    Raises:
        InvalidArgument: a negative timeout.
        DeadlineExceeded: the container survived every step of the ladder, or its start doesn't end.
    """
    if request.timeout < 0:
        raise InvalidArgument(f"timeout {request.timeout} must not be negative")
    live = pods.registry.containers.find(request.container_id)
    if live is not None:
        await stop(pods, live, grace=request.timeout)
    return cri.StopContainerResponse()


async def stop(pods: Pods, live: Container, *, grace: float) -> None:
    """Stop a container in any state, and return when its exit is recorded; `grace` in seconds."""
    if live.record.state in (ContainerState.CREATED, ContainerState.EXITED):
        return
    deadline = asyncio.get_running_loop().time() + grace
    if deadline < live.stop_deadline:
        live.stop_deadline = deadline
        live.stop_sooner.set()
    if live.stopper is None or live.stopper.done():
        live.stopper = pods.supervisor.start_awaited(_stop(pods, live, grace > 0), name=f"stop {live.record.id}")
    await pods.supervisor.join(live.stopper)


async def _stop(pods: Pods, live: Container, gently: bool) -> None:
    try:
        await _settled(pods, live)
        if gently:
            await _signal(pods, live, live.record.stop_signal, whole=False)
            await _until_deadline(live)
        if not live.exited.is_set():
            await _kill(pods, live)
    finally:
        live.stop_deadline = float("inf")


async def _settled(pods: Pods, live: Container) -> None:
    """Wait for the end of a start under way: before it there is nothing to signal. One that hangs loses its shim."""
    if live.record.state is not ContainerState.STARTING:
        return
    try:
        await within(timeouts.IN_FLIGHT, pods.locks.passed(live.record.id), f"the start of container {live.record.id}")
    except DeadlineExceeded as error:
        _log.warning("killing the shim under a container that doesn't start", container=live.record.id, error=str(error))
        await pods.tasks.kill_shim(live.record.sandbox_id)
        await within(timeouts.IN_FLIGHT, pods.locks.passed(live.record.id), f"the end of the start of container {live.record.id}")


async def _until_deadline(live: Container) -> None:
    """Wait for the exit or for the deadline, which another call may bring forward meanwhile."""
    loop = asyncio.get_running_loop()
    while not live.exited.is_set() and (left := live.stop_deadline - loop.time()) > 0:
        live.stop_sooner.clear()
        sooner = asyncio.ensure_future(live.stop_sooner.wait())
        exited = asyncio.ensure_future(live.exited.wait())
        try:
            await asyncio.wait((sooner, exited), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sooner.cancel()
            exited.cancel()


async def _kill(pods: Pods, live: Container) -> None:
    record = live.record
    await _signal(pods, live, signal.SIGKILL, whole=True)
    if await _exits_within(live, timeouts.EXIT_AFTER_KILL) or await record_lost_exit(pods, live):
        return
    await _kill_cgroup(pods, live)
    if await _exits_within(live, timeouts.EXIT_AFTER_CGROUP_KILL) or await record_lost_exit(pods, live):
        return
    _log.warning("no exit after SIGKILL: killing the shim", container=record.id, sandbox=record.sandbox_id)
    await pods.tasks.kill_shim(record.sandbox_id)
    if await _exits_within(live, timeouts.SHIM_DELETE + timeouts.EXIT_AFTER_SHIM_KILL) or await record_lost_exit(pods, live):
        return
    raise DeadlineExceeded(
        f"container {record.id} has not ended after SIGKILL to it and to its shim{await _what_is_left(pods, live)}. "
        "The agent goes on trying; a process in state D ends only when its I/O does, one in a frozen cgroup when that is thawed"
    )


async def _what_is_left(pods: Pods, live: Container) -> str:
    task = pods.tasks.find(live.record.id)
    if task is None or not task.record.cgroup:
        return ""
    try:
        return f"; in its cgroup {task.record.cgroup}: {await pods.cgroups.named(task.record.cgroup) or 'nobody'}"
    except (OrlopError, OSError) as error:
        return f"; its cgroup can't be read: {error}"


async def _kill_cgroup(pods: Pods, live: Container) -> None:
    """Needs nobody's help, and thaws what somebody froze. What a living shim then tells saves the pod's other containers."""
    task = pods.tasks.find(live.record.id)
    if task is None or not task.record.cgroup:
        return
    _log.warning("no exit after SIGKILL: killing the container's cgroup", container=task.id, cgroup=task.record.cgroup)
    await failpoints.hit("pods.container_stop.cgroup")
    try:
        await pods.cgroups.kill(task.record.cgroup, timeouts.EXIT_AFTER_KILL)
    except (OrlopError, OSError) as error:
        _log.warning("cgroup not killed", container=task.id, error=str(error))


async def _signal(pods: Pods, live: Container, number: int, *, whole: bool) -> None:
    """Send a signal; a shim that doesn't answer or a task that just ended is no reason to stop stopping."""
    await failpoints.hit("pods.container_stop.signal")
    try:
        task = pods.tasks.get(live.record.id)
        await within(timeouts.TASK_KILL, task.kill(number, all=whole), f"Kill of container {live.record.id}")
    except NotFound:
        return
    except OrlopError as error:
        _log.warning("signal not delivered", container=live.record.id, signal=number, error=str(error))


async def _exits_within(live: Container, budget: float) -> bool:
    try:
        await within(budget, live.exited.wait(), "exit")
    except DeadlineExceeded:
        return False
    return True
