"""`orlop ps`, `logs`, `exec`, `rm`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from agent.aio import in_thread
from agent.cli import lookup, output
from agent.errdefs import FailedPrecondition, OrlopError
from cri.api import api_pb2 as cri
from cri.client import Client

_FOLLOW_INTERVAL = 0.2


async def ps(client: Client, form: str) -> None:
    """Print pods with their containers."""
    sandboxes = (await client.call("ListPodSandbox", cri.ListPodSandboxRequest())).items
    containers = (await client.call("ListContainers", cri.ListContainersRequest())).containers
    rows: list[dict[str, Any]] = []
    for sandbox in sorted(sandboxes, key=lambda item: -item.created_at):
        status = await client.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id))
        ips = [status.status.network.ip, *(extra.ip for extra in status.status.network.additional_ips)]
        common = {
            "pod": f"{sandbox.metadata.namespace}/{sandbox.metadata.name}",
            "pod_id": sandbox.id[:13],
            "ip": ", ".join(filter(None, ips)),
        }
        mine = sorted((item for item in containers if item.pod_sandbox_id == sandbox.id), key=lambda item: item.created_at)
        state = cri.PodSandboxState.Name(sandbox.state).removeprefix("SANDBOX_")
        rows.append({**common, "container": "", "id": "", "state": state, "age": output.age(sandbox.created_at), "image": ""})
        rows += [
            {
                **common,
                "container": item.metadata.name,
                "id": item.id[:13],
                "state": cri.ContainerState.Name(item.state).removeprefix("CONTAINER_"),
                "age": output.age(item.created_at),
                "image": item.image.user_specified_image or item.image.image,
            }
            for item in mine
        ]
    output.show(rows, ("pod", "pod_id", "ip", "container", "id", "state", "age", "image"), form)


async def logs(client: Client, wanted: str, *, follow: bool, timestamps: bool) -> None:
    """Print a container's log file; with `follow`, on until it ends.

    Raises:
        NotFound: no such container. FailedPrecondition: it has no log, or the log isn't on this node.
    """
    item = await lookup.container(client, wanted)
    status = (await client.call("ContainerStatus", cri.ContainerStatusRequest(container_id=item.id))).status
    if not status.log_path:
        raise FailedPrecondition(f"container {item.id[:13]} has no log")
    position = 0
    while True:
        running = status.state == cri.CONTAINER_RUNNING
        position = await in_thread(_print_log, Path(status.log_path), position, timestamps)
        if not follow or not running:
            return
        await asyncio.sleep(_FOLLOW_INTERVAL)
        status = (await client.call("ContainerStatus", cri.ContainerStatusRequest(container_id=item.id))).status


def _print_log(path: Path, position: int, timestamps: bool) -> int:
    """Print the whole records from `position` on; returns where the next look begins."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except OSError as error:
        raise FailedPrecondition(f"log {path} can't be read: {error.strerror}") from error
    whole = data[: data.rfind(b"\n") + 1]
    for record in whole.splitlines():
        stamp, stream, tag, content = (*record.split(b" ", 3), b"", b"", b"")[:4]
        target = sys.stderr if stream == b"stderr" else sys.stdout
        target.buffer.write((stamp + b" " if timestamps else b"") + content + (b"\n" if tag == b"F" else b""))
    sys.stdout.flush()
    sys.stderr.flush()
    return position + len(whole)


async def execute(client: Client, wanted: str, command: list[str], timeout: int) -> int:
    """Run a command in a container, print what it printed; returns its exit code."""
    item = await lookup.container(client, wanted, running=True)
    answer = await client.call("ExecSync", cri.ExecSyncRequest(container_id=item.id, cmd=command, timeout=timeout))
    sys.stdout.buffer.write(answer.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(answer.stderr)
    sys.stderr.flush()
    return int(answer.exit_code)


async def remove(client: Client, wanted: list[str], grace: int) -> int:
    """Stop pods with a grace period, and remove them; returns how many could not be."""
    failed = 0
    for name in wanted:
        try:
            sandbox = await lookup.pod(client, name)
            await take_down(client, sandbox.id, grace)
            click.echo(f"{name} removed")
        except OrlopError as error:
            failed += 1
            click.echo(f"{name}: {error}", err=True)
    return failed


async def take_down(client: Client, sandbox_id: str, grace: int) -> None:
    """Stop the containers side by side, then the sandbox, then remove it: what a kubelet does with a deleted pod."""
    mine = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=sandbox_id))
    containers = (await client.call("ListContainers", mine)).containers
    stops = [client.call("StopContainer", cri.StopContainerRequest(container_id=item.id, timeout=grace)) for item in containers]
    await asyncio.gather(*stops)
    await client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
    await client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))
