"""`orlop image pull` against a daemon that pulls at the test's word."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
import pytest
from google.protobuf.message import Message

from agent.cli import pull as pull_module
from agent.cli.pull import ask_password, pull
from agent.errdefs import NotFound, Unimplemented
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from cri.client import Client

PHASES = ["waiting", "downloading", "unpacking"]


class FakeDaemon(Client):
    """Comes a phase further with each look at the progress; after the last one the pull ends."""

    def __init__(self, *, error: Exception | None = None, has_admin: bool = True) -> None:
        self.error = error
        self.has_admin = has_admin
        self.requests: list[Any] = []
        self.looks = 0
        self.seen = asyncio.Event()
        self.given_up = False

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        self.requests.append(request)
        return await (self.pull() if method == "PullImage" else self.look())

    async def pull(self) -> cri.PullImageResponse:
        try:
            await self.seen.wait()
        except asyncio.CancelledError:
            self.given_up = True
            raise
        if self.error:
            raise self.error
        return cri.PullImageResponse(image_ref="sha256:1234")

    async def look(self) -> admin_pb2.PullsResponse:
        if not self.has_admin:
            self.seen.set()
            raise Unimplemented("no such service")
        phase = PHASES[self.looks]
        self.looks += 1
        if self.looks == len(PHASES):
            self.seen.set()
        layers = [admin_pb2.PulledLayer(digest=f"sha256:{name * 64}", size=1000, offset=500, phase=phase) for name in "aa"]
        return admin_pb2.PullsResponse(pulls=[admin_pb2.Pull(image="x", layers=layers)])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(pull_module, "_INTERVAL", 0.001)


async def test_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    daemon = FakeDaemon()
    daemon.seen.set()
    await pull(daemon, "app:1", "me:s3cret:x", "json")
    (request,) = daemon.requests
    assert (request.image.image, request.auth.username, request.auth.password) == ("app:1", "me", "s3cret:x")
    said = capsys.readouterr()
    assert json.loads(said.out) == [{"image": "app:1", "id": "sha256:1234"}]
    assert said.err == ""


@pytest.mark.usefixtures("terminal")
async def test_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    daemon = FakeDaemon()
    await pull(daemon, "app:1", "", "table")
    said = capsys.readouterr()
    assert all(request.image == "app:1" for request in daemon.requests[1:])
    for word in ("aaaaaaaaaaaa", *PHASES, "done"):
        assert word in said.err
    assert "sha256:1234" in said.out


@pytest.mark.usefixtures("terminal")
async def test_on_the_socket_of_another_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    await pull(FakeDaemon(has_admin=False), "app:1", "", "table")
    assert "sha256:1234" in capsys.readouterr().out


@pytest.mark.usefixtures("terminal")
async def test_a_pull_that_fails() -> None:
    with pytest.raises(NotFound, match="not there"):
        await pull(FakeDaemon(error=NotFound("it is not there")), "app:1", "", "table")


async def test_a_pull_that_is_given_up() -> None:
    daemon = FakeDaemon()
    task = asyncio.create_task(pull(daemon, "app:1", "", "json"))
    while not daemon.requests:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert daemon.given_up


def test_a_password_is_asked_for_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "prompt", lambda text, **options: "typed" if options["hide_input"] else "shown")
    assert [ask_password(creds) for creds in ("", "me:x", "me:", "me")] == ["", "me:x", "me:", "me:typed"]
