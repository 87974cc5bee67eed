"""`orlop run POD.yaml`: a Pod manifest through the CRI socket, with the progress of every step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from agent.aio import in_thread
from agent.cli import manifest
from agent.cli.pods import take_down
from agent.errdefs import FailedPrecondition
from cri.api import api_pb2 as cri
from cri.client import Client

_WAIT_INTERVAL = 0.1


async def run(client: Client, path: Path, *, remove: bool, wait: bool, log_root: str, output: str) -> int:
    """Run a pod; with `wait` until its containers ended, with `remove` take it down then. Returns the exit code for the shell:
    that of the first container that failed, else 0.

    Raises:
        InvalidArgument: the manifest. Others: as the CRI verbs; what was made is taken down again.
    """
    pod = await in_thread(manifest.load, path, log_root=log_root)
    progress = _Progress(quiet=output == "json")
    for ignored in pod.ignored:
        click.echo(f"ignored: {ignored}", err=True)
    await in_thread(_make_log_directories, pod)
    with progress.step(f"sandbox {pod.sandbox.metadata.name}"):
        request = cri.RunPodSandboxRequest(config=pod.sandbox, runtime_handler=pod.handler)
        sandbox_id = (await client.call("RunPodSandbox", request)).pod_sandbox_id
    try:
        code = await _run_containers(client, pod, sandbox_id, progress, wait or remove)
    except BaseException:
        with progress.step("taking the pod down again"):
            await take_down(client, sandbox_id, 0)
        raise
    if remove:
        with progress.step("removing the pod"):
            await take_down(client, sandbox_id, pod.grace)
    if output == "json":
        click.echo(json.dumps({"pod_sandbox_id": sandbox_id, "removed": remove, "containers": progress.containers}, indent=2))
    return code


async def _run_containers(client: Client, pod: manifest.Pod, sandbox_id: str, progress: _Progress, wait: bool) -> int:
    for config in pod.init_containers:
        name = config.metadata.name
        container_id = await _start(client, pod, sandbox_id, config, progress)
        if name in pod.sidecars:
            continue
        with progress.step(f"init container {name} runs"):
            code = await _exit_code(client, container_id)
        progress.containers[name]["exit_code"] = code
        if code:
            raise FailedPrecondition(f"init container {name} ended with {code}; see its log in {pod.sandbox.log_directory}")
    for config in pod.containers:
        await _start(client, pod, sandbox_id, config, progress)
    if not wait:
        return 0
    mine = [progress.containers[config.metadata.name] for config in pod.containers]
    with progress.step("waiting for the containers to end"):
        codes = await asyncio.gather(*(_exit_code(client, container["id"]) for container in mine))
    for container, code in zip(mine, codes, strict=True):
        container["exit_code"] = code
    return next((code for code in codes if code), 0)


async def _start(client: Client, pod: manifest.Pod, sandbox_id: str, config: cri.ContainerConfig, progress: _Progress) -> str:
    name = config.metadata.name
    with progress.step(f"container {name} created"):
        request = cri.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=config, sandbox_config=pod.sandbox)
        container_id = str((await client.call("CreateContainer", request)).container_id)
    with progress.step(f"container {name} started"):
        await client.call("StartContainer", cri.StartContainerRequest(container_id=container_id))
    progress.containers[name] = {"id": container_id}
    return container_id


async def _exit_code(client: Client, container_id: str) -> int:
    while True:
        status = (await client.call("ContainerStatus", cri.ContainerStatusRequest(container_id=container_id))).status
        if status.state == cri.CONTAINER_EXITED:
            return int(status.exit_code)
        await asyncio.sleep(_WAIT_INTERVAL)


def _make_log_directories(pod: manifest.Pod) -> None:
    try:
        for config in (*pod.init_containers, *pod.containers):
            (Path(pod.sandbox.log_directory) / config.log_path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"log directory {error.filename} can't be made: {error.strerror}") from error


class _Progress:
    """One line per step, with its time; on stderr, so that stdout stays for results."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self.containers: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        mark = "failed"
        try:
            yield
            mark = "ok"
        finally:
            if not self._quiet:
                click.echo(f"{what:<44} {mark:>6} {(time.monotonic() - started) * 1000:8.0f} ms", err=True)
