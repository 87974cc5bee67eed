"""How fast a container can write to its log: it prints a file of the host, which costs it next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from agent.aio import in_thread
from agent.bench.session import Session
from agent.bench.target import Target
from agent.errdefs import DeadlineExceeded
from cri.api import api_pb2 as cri

_LINES = {"log_short": 100, "log_long": 4096}
"""Bytes of a line with its end, by measurement."""
_INSIDE = "/orlop-bench-lines"
_BUDGET = 120.0
_POLL = 0.05


async def measure(session: Session) -> None:
    for key, size in _LINES.items():
        await session.rounds("logs", session.plan.turns, partial(_turn, key, size), tidy=True)


async def _turn(key: str, size: int, target: Target) -> None:
    """The bytes that were printed, by the time from the first entry of the log to its last change."""
    pod = target.pod()
    await target.make_log_directories(pod)
    count = max(1, target.plan.log_bytes // size)
    lines = Path(pod.config.log_directory) / "lines"
    await in_thread(lines.write_bytes, (b"x" * (size - 1) + b"\n") * count)
    pod.id = (await target.call("RunPodSandbox", target.sandbox_request(pod))).pod_sandbox_id
    mount = cri.Mount(container_path=_INSIDE, host_path=str(lines), readonly=True)
    request = target.container_request(pod, command=("cat", _INSIDE), mounts=[mount])
    pod.containers.append((await target.call("CreateContainer", request)).container_id)
    await target.call("StartContainer", cri.StartContainerRequest(container_id=pod.containers[0]))
    log = Path(pod.config.log_directory) / "app/0.log"
    deadline = time.monotonic() + _BUDGET
    while (seconds := await in_thread(_written, log, count)) is None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"after {_BUDGET:g} s not all {count} lines are in {log}")
        await asyncio.sleep(_POLL)
    target.add(key, count * size / seconds)
    await _ended(target, pod.containers[0])
    await target.end(pod)


async def _ended(target: Target, container: str) -> None:
    """Wait for the end of a container that ends by itself: no kubelet stops one in that very moment."""
    request = cri.ContainerStatusRequest(container_id=container)
    deadline = time.monotonic() + _BUDGET
    while (await target.call("ContainerStatus", request)).status.state != cri.CONTAINER_EXITED:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"container {container} has printed all its lines and doesn't end within {_BUDGET:g} s")
        await asyncio.sleep(_POLL)


def _written(log: Path, count: int) -> float | None:
    """The seconds that writing `count` lines took; None: they aren't all there yet."""
    with suppress(FileNotFoundError):
        if sum(chunk.count(b"\n") for chunk in _chunks(log)) >= count:
            with log.open("rb") as file:
                first = datetime.fromisoformat(file.readline().split(b" ", 1)[0].decode())
            return log.stat().st_mtime - first.timestamp()
    return None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
