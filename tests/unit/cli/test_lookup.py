"""Which pod or container is meant by what people type."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from agent.cli import lookup
from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound
from cri.api import api_pb2 as cri
from cri.client import Client

READY, NOT_READY = cri.SANDBOX_READY, cri.SANDBOX_NOTREADY
RUNNING, EXITED = cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED


def pod(pod_id: str, name: str, namespace: str = "default", state: cri.PodSandboxState = READY) -> cri.PodSandbox:
    return cri.PodSandbox(id=pod_id, metadata=cri.PodSandboxMetadata(name=name, namespace=namespace), state=state)


def container(container_id: str, name: str, pod_id: str, created: int = 1, state: cri.ContainerState = RUNNING) -> cri.Container:
    return cri.Container(
        id=container_id, metadata=cri.ContainerMetadata(name=name), pod_sandbox_id=pod_id, created_at=created, state=state
    )  # fmt: skip


class FakeNode(Client):
    """Lists what it is made with."""

    def __init__(self, *items: cri.PodSandbox | cri.Container) -> None:
        self.pods = [item for item in items if isinstance(item, cri.PodSandbox)]
        self.containers = [item for item in items if isinstance(item, cri.Container)]

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        if method == "ListPodSandbox":
            return cri.ListPodSandboxResponse(items=self.pods)
        assert method == "ListContainers"
        return cri.ListContainersResponse(containers=self.containers)


PODS = FakeNode(
    pod("aa11", "web"),
    pod("aa22", "db", "prod"),
    pod("bb33", "db", "test", NOT_READY),
    pod("cc44", "old", state=NOT_READY),
    pod("cc55", "old", state=NOT_READY),
    pod("dd66", "aa"),
)


class TestPods:
    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ("aa11", "aa11"),
            ("aa1", "aa11"),
            ("web", "aa11"),
            ("default/web", "aa11"),
            ("prod/db", "aa22"),
            ("test/db", "bb33"),
            ("db", "aa22"),  # the only one of them that is READY
            ("aa", "dd66"),  # a name goes before the beginning of an id
            ("cc44", "cc44"),
        ],
    )
    async def test_found(self, wanted: str, found: str) -> None:
        assert (await lookup.pod(PODS, wanted)).id == found

    @pytest.mark.parametrize("wanted", ["nobody", "prod/web", "aa11x", "/web", "*"])
    async def test_not_found(self, wanted: str) -> None:
        with pytest.raises(NotFound, match="there is no pod"):
            await lookup.pod(PODS, wanted)

    @pytest.mark.parametrize("wanted", ["old", "cc"])
    async def test_several(self, wanted: str) -> None:
        with pytest.raises(FailedPrecondition, match="could be any of cc44, cc55"):
            await lookup.pod(PODS, wanted)

    async def test_no_name_is_not_every_pod(self) -> None:
        with pytest.raises(InvalidArgument, match="which pod"):
            await lookup.pod(FakeNode(pod("aa11", "web")), "")


CONTAINERS = FakeNode(
    *PODS.pods,
    container("1111", "app", "aa11", created=1, state=EXITED),
    container("1122", "app", "aa11", created=3, state=EXITED),
    container("1133", "app", "aa11", created=2),
    container("2211", "main", "aa22"),
    container("2222", "main", "bb33"),
    container("3311", "job", "aa11", state=EXITED),
)


class TestContainers:
    @pytest.mark.parametrize(
        ("wanted", "running", "found"),
        [
            ("2211", False, "2211"),
            ("111", False, "1111"),
            ("app", False, "1122"),  # the newest
            ("app", True, "1133"),  # the newest that runs
            ("web/app", True, "1133"),
            ("default/web/app", False, "1122"),
            ("prod/db/main", False, "2211"),
            ("aa22/main", False, "2211"),
            ("11", True, "1133"),  # of those that begin so the one that runs
            ("job", True, "3311"),  # none runs: the caller is told so of the one that is meant
            ("3311", True, "3311"),
        ],
    )
    async def test_found(self, wanted: str, running: bool, found: str) -> None:
        assert (await lookup.container(CONTAINERS, wanted, running=running)).id == found

    @pytest.mark.parametrize("wanted", ["nobody", "web/main", "nobody/app", "web/"])
    async def test_not_found(self, wanted: str) -> None:
        with pytest.raises(NotFound, match="there is no"):
            await lookup.container(CONTAINERS, wanted)

    @pytest.mark.parametrize("wanted", ["main", "22"])
    async def test_several_pods_have_one(self, wanted: str) -> None:
        with pytest.raises(FailedPrecondition, match="could be any of 2211, 2222"):
            await lookup.container(CONTAINERS, wanted)

    async def test_no_name_is_not_every_container(self) -> None:
        with pytest.raises(InvalidArgument, match="which container"):
            await lookup.container(FakeNode(container("1", "app", "a")), "")
