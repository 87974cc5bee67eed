"""The life of a pod with one container, call by call, one pod at a time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from agent.bench.session import Session
from agent.bench.target import GRACE, Target
from agent.errdefs import OrlopError
from cri.api import api_pb2 as cri

_SETTLE = 0.1
"""Seconds between start and stop: what a runtime still does after its answer is not to slow its next call down, since no kubelet
is that quick."""


async def measure(session: Session) -> None:
    meters = {target: _Meter(session, target) for target in session.targets}
    for meter in meters.values():
        await meter.memory("daemon_memory_before")
    left = await session.rounds("pods", session.plan.pods, lambda target: _life(target, meters[target]), tidy=True)
    for target in left:
        await meters[target].lap()
        await meters[target].memory("daemon_memory_after")
    for meter in meters.values():
        meter.close()


async def _life(target: Target, meter: _Meter) -> None:
    """A kubelet's calls for a pod that is made and deleted."""
    pod = target.pod()
    await target.make_log_directories(pod)
    await meter.lap()
    run, answer = await target.timed("RunPodSandbox", target.sandbox_request(pod))
    pod.id = answer.pod_sandbox_id
    create, answer = await target.timed("CreateContainer", target.container_request(pod))
    container = answer.container_id
    start, _ = await target.timed("StartContainer", cri.StartContainerRequest(container_id=container))
    target.add("pod_start", run + create + start)
    await meter.check(pod.id)
    await asyncio.sleep(_SETTLE)
    stop, _ = await target.timed("StopContainer", cri.StopContainerRequest(container_id=container, timeout=GRACE))
    stop_pod, _ = await target.timed("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    remove, _ = await target.timed("RemoveContainer", cri.RemoveContainerRequest(container_id=container))
    remove_pod, _ = await target.timed("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    target.add("pod_stop", stop + stop_pod)
    target.add("pod_removal", remove + remove_pod)
    target.add("pod_end", stop + stop_pod + remove + remove_pod)
    await asyncio.sleep(_SETTLE)
    await target.forget(pod)


class _Meter:
    """CPU time of one socket's stack from the beginning of a pod to that of its next: with what is done late, or by and by."""

    def __init__(self, session: Session, target: Target) -> None:
        self._session = session
        self._target = target
        self._stack: list[float] = []
        self._daemon: list[float] = []

    async def memory(self, key: str) -> None:
        async def daemon() -> float:
            return (await self._target.stack.memory()).daemon

        await self._session.take(self._target, key, daemon)

    async def lap(self) -> None:
        """Between two pods."""
        for key, readings, read in (
            ("stack_cpu", self._stack, self._target.stack.cpu),
            ("daemon_cpu", self._daemon, self._target.stack.daemon_cpu),
        ):
            if not self._session.results.of(key, self._target.name).reason:
                try:
                    readings.append(await read())
                except OrlopError as error:
                    self._session.results.absent(key, self._target.name, str(error))

    async def check(self, sandbox: str) -> None:
        """While the first pod runs: whether its shim is where CPU time is read."""
        if len(self._stack) == 1:
            try:
                await self._target.stack.check(sandbox)
            except OrlopError as error:
                self._stack.clear()
                self._session.results.absent("stack_cpu", self._target.name, str(error))

    def close(self) -> None:
        """What was read, as samples. The daemon's own time is counted in ticks of 10 ms, so that only the mean says something."""
        for before, after in pairwise(self._stack):
            self._target.add("stack_cpu", after - before)
        if (pods := len(self._daemon) - 1) > 0:
            self._target.add("daemon_cpu", (self._daemon[-1] - self._daemon[0]) / pods)
