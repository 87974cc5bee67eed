"""`orlop ps`, `exec`, `rm`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from agent.aio import together
from agent.cli import lookup, output
from agent.errdefs import NotFound, OrlopError
from cri.api import api_pb2 as cri
from cri.client import Client

_COLUMNS = ("pod", "pod_id", "ip", "container", "id", "state", "age", "image")
_SHORT = 13
"""Characters of an id that people see; any beginning that is unique will do."""


async def ps(client: Client, form: str) -> None:
    """Print pods with their containers, the newest pod first."""
    sandboxes = (await client.call("ListPodSandbox", cri.ListPodSandboxRequest())).items
    containers = (await client.call("ListContainers", cri.ListContainersRequest())).containers
    pods = [await _pod(client, item, containers) for item in sorted(sandboxes, key=lambda item: -item.created_at)]
    if form == "json":
        click.echo(json.dumps([pod for pod in pods if pod is not None], indent=2))
    else:
        output.show([row for pod in pods if pod is not None for row in _rows(pod)], _COLUMNS, form)


async def _pod(client: Client, sandbox: cri.PodSandbox, containers: Any) -> dict[str, Any] | None:
    """A pod for programs; None if it was removed since it was listed. Times are Unix nanoseconds."""
    try:
        status = (await client.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id))).status
    except NotFound:
        return None
    mine = sorted((item for item in containers if item.pod_sandbox_id == sandbox.id), key=lambda item: item.created_at)
    return {
        "id": sandbox.id,
        "namespace": sandbox.metadata.namespace,
        "name": sandbox.metadata.name,
        "state": cri.PodSandboxState.Name(status.state).removeprefix("SANDBOX_"),
        "ips": [ip for ip in (status.network.ip, *(extra.ip for extra in status.network.additional_ips)) if ip],
        "created_at": sandbox.created_at,
        "handler": sandbox.runtime_handler,
        "containers": [
            {
                "id": item.id,
                "name": item.metadata.name,
                "attempt": item.metadata.attempt,
                "state": cri.ContainerState.Name(item.state).removeprefix("CONTAINER_"),
                "created_at": item.created_at,
                "image": item.image.user_specified_image or item.image.image,
            }
            for item in mine
        ],
    }


def _rows(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """A pod for people: a row of its own, and one for each container."""
    common = {"pod": f"{pod['namespace']}/{pod['name']}", "pod_id": pod["id"][:_SHORT], "ip": pod["ips"]}
    rows = [{**common, "state": pod["state"], "age": output.age(pod["created_at"])}]
    for item in pod["containers"]:
        shown = {"container": item["name"], "id": item["id"][:_SHORT], "age": output.age(item["created_at"])}
        rows.append({**common, **shown, "state": item["state"], "image": item["image"]})
    return rows


async def execute(client: Client, wanted: str, command: list[str], timeout: int, form: str) -> int:
    """Run a command in a container, print what it printed; returns its exit code."""
    item = await lookup.container(client, wanted, running=True)
    answer = await client.call("ExecSync", cri.ExecSyncRequest(container_id=item.id, cmd=command, timeout=timeout))
    if form == "json":
        texts = {name: getattr(answer, name).decode(errors="replace") for name in ("stdout", "stderr")}
        click.echo(json.dumps({"container_id": item.id, "exit_code": answer.exit_code, **texts}, indent=2))
        return int(answer.exit_code)
    sys.stdout.buffer.write(answer.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(answer.stderr)
    sys.stderr.flush()
    return int(answer.exit_code)


async def remove(client: Client, wanted: list[str], grace: int, form: str) -> int:
    """Stop pods with a grace period, and remove them; 1 if any could not be."""
    rows: list[dict[str, Any]] = []
    for name in wanted:
        try:
            sandbox = await lookup.pod(client, name)
            await take_down(client, sandbox.id, grace)
            rows.append({"pod": name, "id": sandbox.id, "removed": True, "error": ""})
        except OrlopError as error:
            rows.append({"pod": name, "id": "", "removed": False, "error": str(error)})
        if form != "json":
            click.echo(f"{name} removed" if rows[-1]["removed"] else f"{name}: {rows[-1]['error']}", err=not rows[-1]["removed"])
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
    return 0 if all(row["removed"] for row in rows) else 1


async def take_down(client: Client, sandbox_id: str, grace: int) -> None:
    """Stop the containers side by side, then the sandbox, then remove it: what a kubelet does with a deleted pod."""
    mine = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=sandbox_id))
    containers = (await client.call("ListContainers", mine)).containers
    stops = [client.call("StopContainer", cri.StopContainerRequest(container_id=item.id, timeout=grace)) for item in containers]
    await together(*stops)
    await client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
    await client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))
