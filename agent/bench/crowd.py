"""Many containers at once: what lists, statistics and a restart of the daemon cost with them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from google.protobuf.message import Message

from agent.bench.parallel import at_a_time
from agent.bench.session import Session
from agent.bench.target import LABEL, Pod, Target
from agent.errdefs import DeadlineExceeded, FailedPrecondition, OrlopError
from agent.linux.processes import Command, Processes
from cri.api import api_pb2 as cri

FAMILIES = ("lists", "restart")
_AT_A_TIME = 4
_RESTART_BUDGET = 120.0
"""Seconds for the command, and again until all containers are listed."""
_POLL = 0.01

_CALLS: dict[str, Callable[[Pod], Message]] = {
    "ListPodSandbox": lambda pod: cri.ListPodSandboxRequest(),
    "ListContainers": lambda pod: cri.ListContainersRequest(),
    "PodSandboxStatus": lambda pod: cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id),
    "ContainerStatus": lambda pod: cri.ContainerStatusRequest(container_id=pod.containers[0]),
    "ListContainerStats": lambda pod: cri.ListContainerStatsRequest(),
    "ListPodSandboxStats": lambda pod: cri.ListPodSandboxStatsRequest(),
    "ListPodSandboxMetrics": lambda pod: cri.ListPodSandboxMetricsRequest(),
    "Status": lambda pod: cri.StatusRequest(),
    "ListImages": lambda pod: cri.ListImagesRequest(),
    "ImageFsInfo": lambda pod: cri.ImageFsInfoRequest(),
}
"""What a kubelet asks for again and again; a pod of the crowd for calls about one."""


async def measure(session: Session) -> None:
    """Gather the crowd on every socket and measure what is wanted with it; the session takes it down."""
    wanted = [family for family in FAMILIES if session.plan.wants(family)]
    crowds: dict[Target, list[Pod]] = {}
    for target in session.targets:
        session.say(f"{' and '.join(wanted)}: {session.plan.containers} containers on {target.name}")
        try:
            crowds[target] = await _gather(session, target)
        except OrlopError as error:
            for family in wanted:
                session.results.failed(family, target.name, str(error))
    there = [target for target in session.targets if target in crowds]
    if "lists" in wanted:
        await session.rounds("lists", session.plan.repeats, lambda target: _lists(session, target, crowds[target]), there)
    if "restart" in wanted:
        await session.rounds("restart", session.plan.turns, partial(_restart, session), there)


async def _gather(session: Session, target: Target) -> list[Pod]:
    full, rest = divmod(session.plan.containers, session.plan.per_pod)
    sizes = [session.plan.per_pod] * full + [rest] * bool(rest)
    return await at_a_time(_AT_A_TIME, target.start, [(size,) for size in sizes])


async def _lists(session: Session, target: Target, crowd: list[Pod]) -> None:
    """Each call once. One that this runtime doesn't have doesn't keep it from the others."""
    for method, request in _CALLS.items():
        if not session.results.of(method, target.name).reason:
            try:
                await target.timed(method, request(crowd[0]))
            except OrlopError as error:
                session.results.absent(method, target.name, str(error))


async def _restart(session: Session, target: Target) -> None:
    """From the beginning of the command until the new daemon lists every container as running."""
    command = session.plan.restarts.get(target.socket, "")
    if not command:
        raise FailedPrecondition(f"no --restart {target.socket}=COMMAND was given")
    started = time.perf_counter()
    try:
        done = await Processes().run(Command(("/bin/sh", "-c", command), Path("/"), dict(os.environ), budget=_RESTART_BUDGET))
    except OSError as error:
        raise FailedPrecondition(f"{command!r} can't be run: {error.strerror}") from error
    if done.returncode:
        raise FailedPrecondition(f"{command!r} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    ours = cri.ContainerFilter(state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING), label_selector={LABEL: target.run})
    while await _count(target, ours) < session.plan.containers:
        if time.perf_counter() - started > 2 * _RESTART_BUDGET:
            raise DeadlineExceeded(f"after {2 * _RESTART_BUDGET:g} s not all {session.plan.containers} containers are listed as running")
        await asyncio.sleep(_POLL)
    target.add("restart", time.perf_counter() - started)


async def _count(target: Target, which: cri.ContainerFilter) -> int:
    """How many containers are listed by now; none while nobody serves."""
    await target.reconnect()
    try:
        return len((await target.call("ListContainers", cri.ListContainersRequest(filter=which))).containers)
    except OrlopError:
        return 0
