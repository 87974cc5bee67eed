"""`orlop ps`, `exec` and `rm` against a daemon that is a list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from agent.cli import pods
from agent.errdefs import NotFound, OrlopError, Unavailable
from cri.api import api_pb2 as cri
from cri.client import Client


class FakeDaemon(Client):
    """Pods named by their ids, with one container `app` each; keeps what it is told to do. `failures`: by method and id."""

    def __init__(self, *pods: str, failures: dict[tuple[str, str], OrlopError] | None = None) -> None:
        self.pods = list(pods)
        self.failures = failures or {}
        self.calls: list[tuple[str, str]] = []

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        answer: Callable[[Any], Any] = getattr(self, method)
        if not method.startswith("List"):
            target = getattr(request, "container_id", "") or getattr(request, "pod_sandbox_id", "")
            self.calls.append((method, target))
            await asyncio.sleep(0)
            if (failure := self.failures.get((method, target))) is not None:
                raise failure
        return answer(request)

    def ListPodSandbox(self, request: Any) -> cri.ListPodSandboxResponse:
        return cri.ListPodSandboxResponse(
            items=[
                cri.PodSandbox(id=pod, metadata=cri.PodSandboxMetadata(name=f"name-{pod}", namespace="default"), created_at=number)
                for number, pod in enumerate(self.pods)
            ]
        )

    def ListContainers(self, request: cri.ListContainersRequest) -> cri.ListContainersResponse:
        wanted = request.filter.pod_sandbox_id
        return cri.ListContainersResponse(
            containers=[
                cri.Container(
                    id=f"{pod}-{name}", pod_sandbox_id=pod, metadata=cri.ContainerMetadata(name=name), state=cri.CONTAINER_RUNNING,
                    image=cri.ImageSpec(image="sha256:0", user_specified_image="busybox"), created_at=1,
                )
                for pod in self.pods
                for name in ("app", "side")
                if wanted in ("", pod)
            ]
        )  # fmt: skip

    def PodSandboxStatus(self, request: Any) -> cri.PodSandboxStatusResponse:
        network = cri.PodSandboxNetworkStatus(ip="10.0.0.2", additional_ips=[cri.PodIP(ip="fd00::2")])
        return cri.PodSandboxStatusResponse(status=cri.PodSandboxStatus(id=request.pod_sandbox_id, network=network))

    def ExecSync(self, request: Any) -> cri.ExecSyncResponse:
        return cri.ExecSyncResponse(stdout=b"out\xff", stderr=b"err", exit_code=3)

    def StopContainer(self, request: Any) -> cri.StopContainerResponse:
        return cri.StopContainerResponse()

    def StopPodSandbox(self, request: Any) -> cri.StopPodSandboxResponse:
        return cri.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: Any) -> cri.RemovePodSandboxResponse:
        return cri.RemovePodSandboxResponse()


class TestRemove:
    async def test_containers_first_then_the_sandbox(self, capsys: pytest.CaptureFixture[str]) -> None:
        daemon = FakeDaemon("p1", "p2")
        assert await pods.remove(daemon, ["name-p1"], 30, "table") == 0
        assert daemon.calls == [
            ("StopContainer", "p1-app"),
            ("StopContainer", "p1-side"),
            ("StopPodSandbox", "p1"),
            ("RemovePodSandbox", "p1"),
        ]
        assert capsys.readouterr().out == "name-p1 removed\n"

    async def test_one_that_fails_does_not_keep_the_others(self, capsys: pytest.CaptureFixture[str]) -> None:
        daemon = FakeDaemon("p1", "p2", failures={("StopPodSandbox", "p1"): Unavailable("busy")})
        assert await pods.remove(daemon, ["p1", "nobody", "p2"], 0, "json") == 1
        assert [(row["pod"], row["removed"], row["error"]) for row in json.loads(capsys.readouterr().out)] == [
            ("p1", False, "busy"),
            ("nobody", False, "there is no pod 'nobody'"),
            ("p2", True, ""),
        ]

    async def test_the_other_containers_are_stopped_before_a_failure_is_told(self) -> None:
        ended = []

        class Slow(FakeDaemon):
            async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
                if method == "StopContainer" and getattr(request, "container_id", "") == "p1-side":
                    await asyncio.sleep(0.01)
                    ended.append("p1-side")
                return await super().call(method, request)

        with pytest.raises(Unavailable):
            await pods.take_down(Slow("p1", failures={("StopContainer", "p1-app"): Unavailable("x")}), "p1", 0)
        assert ended == ["p1-side"]


class TestPs:
    async def test_the_newest_pod_first_with_its_containers(self, capsys: pytest.CaptureFixture[str]) -> None:
        await pods.ps(FakeDaemon("p1", "p2"), "json")
        found = json.loads(capsys.readouterr().out)
        assert [pod["id"] for pod in found] == ["p2", "p1"]
        assert (found[0]["name"], found[0]["state"], found[0]["ips"]) == ("name-p2", "READY", ["10.0.0.2", "fd00::2"])
        assert [(item["name"], item["state"], item["image"]) for item in found[0]["containers"]] == [
            ("app", "RUNNING", "busybox"),
            ("side", "RUNNING", "busybox"),
        ]

    async def test_a_pod_that_goes_meanwhile_is_left_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        await pods.ps(FakeDaemon("p1", "p2", failures={("PodSandboxStatus", "p1"): NotFound("gone")}), "table")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["POD", "POD", "ID"]
        assert len(lines) == 4
        assert all("default/name-p2" in line for line in lines[1:])


class TestExec:
    async def test_streams_and_exit_code_are_the_commands(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert await pods.execute(FakeDaemon("p1"), "p1-app", ["true"], 0, "table") == 3
        captured = capfdbinary.readouterr()
        assert (captured.out, captured.err) == (b"out\xff", b"err")

    async def test_for_programs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert await pods.execute(FakeDaemon("p1"), "p1-app", ["true"], 0, "json") == 3
        assert json.loads(capsys.readouterr().out) == {"container_id": "p1-app", "exit_code": 3, "stdout": "out\ufffd", "stderr": "err"}
