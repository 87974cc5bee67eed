"""Finding pods and containers by what people type: an id, the beginning of one, or a name."""

from __future__ import annotations

from typing import TypeVar

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound
from cri.api import api_pb2 as cri
from cri.client import Client

T = TypeVar("T", cri.PodSandbox, cri.Container)


async def pod(client: Client, wanted: str) -> cri.PodSandbox:
    """One sandbox by id, prefix of an id, name, or namespace/name; READY ones win.

    Raises:
        InvalidArgument: no name at all. NotFound, FailedPrecondition: none, or several.
    """
    _check("pod", wanted)
    items: list[cri.PodSandbox] = list((await client.call("ListPodSandbox", cri.ListPodSandboxRequest())).items)
    named = [item for item in items if wanted in (item.metadata.name, f"{item.metadata.namespace}/{item.metadata.name}")]
    found = [item for item in items if item.id == wanted] or named or [item for item in items if item.id.startswith(wanted)]
    ready = [item for item in found if item.state == cri.SANDBOX_READY]
    return _one("pod", wanted, ready if len(ready) == 1 else found)


async def container(client: Client, wanted: str, *, running: bool = False) -> cri.Container:
    """One container by id, prefix of an id, name, or POD/NAME; the newest of a name wins. With `running`, one that runs is preferred.

    Raises:
        InvalidArgument: no name at all. NotFound, FailedPrecondition: none, or several pods have one of this name.
    """
    _check("container", wanted)
    items: list[cri.Container] = list((await client.call("ListContainers", cri.ListContainersRequest())).containers)
    found = [item for item in items if item.id == wanted]
    if not found:
        pod_name, _, name = wanted.rpartition("/")
        found = [item for item in items if item.metadata.name == name]
        if pod_name:
            sandbox = await pod(client, pod_name)
            found = [item for item in found if item.pod_sandbox_id == sandbox.id]
        found = _preferred(found, running)
        if len({item.pod_sandbox_id for item in found}) == 1:
            found = [max(found, key=lambda item: item.created_at)]
    return _one("container", wanted, found or _preferred([item for item in items if item.id.startswith(wanted)], running))


def _check(what: str, wanted: str) -> None:
    """Every id begins with the empty string."""
    if not wanted:
        raise InvalidArgument(f"which {what}? The name is empty")


def _preferred(items: list[cri.Container], running: bool) -> list[cri.Container]:
    return [item for item in items if running and item.state == cri.CONTAINER_RUNNING] or items


def _one(what: str, wanted: str, found: list[T]) -> T:
    if not found:
        raise NotFound(f"there is no {what} {wanted!r}")
    if len(found) > 1:
        ids = ", ".join(item.id[:13] for item in found)
        raise FailedPrecondition(f"{what} {wanted!r} could be any of {ids}; use an id")
    return found[0]
