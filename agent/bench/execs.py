"""ExecSync of a command that does nothing, alone and many at a time, in one container."""

from __future__ import annotations

import time

from agent.aio import together
from agent.bench.session import Session
from agent.bench.target import Pod, Target
from agent.errdefs import Unknown
from cri.api import api_pb2 as cri

_BUDGET = 60
"""Seconds that the runtime gives the command."""


async def measure(session: Session) -> None:
    """With a pod on each socket; the session takes them down."""
    pods: dict[Target, Pod] = {}

    async def begin(target: Target) -> None:
        pods[target] = await target.start()

    async def alone(target: Target) -> None:
        target.add("exec_alone", await _execs(target, pods[target], 1))

    async def many(target: Target) -> None:
        target.add("exec_many", await _execs(target, pods[target], session.plan.execs))

    there = await session.rounds("exec", 1, begin)
    there = await session.rounds("exec", session.plan.repeats, alone, there)
    await session.rounds("exec", max(1, session.plan.repeats // 3), many, there)


async def _execs(target: Target, pod: Pod, count: int) -> float:
    """The seconds until all have ended."""
    request = cri.ExecSyncRequest(container_id=pod.containers[0], cmd=["true"], timeout=_BUDGET)
    started = time.perf_counter()
    answers = await together(*(target.call("ExecSync", request) for _ in range(count)))
    seconds = time.perf_counter() - started
    if codes := {answer.exit_code for answer in answers} - {0}:
        raise Unknown(f"ExecSync of `true` ended with {', '.join(map(str, codes))}")
    return seconds
