"""`orlop explain`: names, the daemon that is down, and what is printed."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from agent.cli import explain as command
from agent.daemon import layout
from agent.errdefs import NotFound, Unavailable
from agent.leaks import audit
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from agent.store.store import Store
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from tests.unit.cli.test_audit import FakeDaemon, settings
from tests.unit.leaks.fakes import CONTAINER, SANDBOX, FakeNode
from tests.unit.leaks.test_explain import FakeMounts, shell

pytestmark = pytest.mark.usefixtures("logging")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node = FakeNode(tmp_path)
    monkeypatch.setattr(layout, "places", lambda _: node.places)
    monkeypatch.setattr(command, "Inventory", lambda: node.network)
    monkeypatch.setattr(command, "find", functools.partial(audit, settle=0, ask=node.ask))
    return node


class Daemon(FakeDaemon):
    """With a pod called web in its list, and a history."""

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        if method == "ListPodSandbox":
            pod = cri.PodSandbox(id=SANDBOX, metadata=cri.PodSandboxMetadata(name="web", namespace="default"))
            return cri.ListPodSandboxResponse(items=[pod])
        if method == "ListContainers":
            return cri.ListContainersResponse()
        if method == "History":
            assert isinstance(request, admin_pb2.HistoryRequest)
            entry = admin_pb2.Transition(time=5.25, kind="task", key=CONTAINER, container=CONTAINER, state="failed", detail="busy\x1b")
            return admin_pb2.HistoryResponse(transitions=[entry])
        return await super().call(method, request, timeout=timeout)


class Down(FakeDaemon):
    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        raise Unavailable("nobody listens")


def stuck(node: FakeNode) -> None:
    """A container whose rootfs is busy."""
    entry = node.owns(Kind.TASK, CONTAINER, container=CONTAINER)
    node.ledger[:] = [entry.failed("it is held by process 40 (sh)", time.time() - 65, time.time() + 30)]


async def test_a_pod_by_its_name(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    stuck(node)
    await command.run(settings(node), Daemon(node), "web", "table", FakeMounts(rootfs=[shell()]))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == f"pod {SANDBOX} (web)"
    assert f"  mount {node.places.bundles / CONTAINER / 'rootfs'}" in lines
    assert f"    {shell()}" in lines
    assert "    tried 1 times in the last 1m; the last error: it is held by process 40 (sh)" in lines
    assert any(line.startswith("    next: in ") for line in lines)
    assert any(line.startswith("    what you can do: End what holds the mount") for line in lines)
    assert lines[-1].endswith(f":05.250  failed    task         {CONTAINER}: busy\\x1b")


async def test_as_json(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    stuck(node)
    await command.run(settings(node), Daemon(node), SANDBOX[:8], "json", FakeMounts())
    answer = json.loads(capsys.readouterr().out)
    assert answer["ids"] == sorted([CONTAINER, SANDBOX])
    assert [(entry["at"], entry["transition"]) for entry in answer["timeline"]] == [(5.25, "failed")]


async def test_a_daemon_that_is_down(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    store = await Store.open(node.places.state_dir, node.places.root_dir)
    await store.ledger.intend(Intent(Kind.TASK, CONTAINER, SANDBOX, CONTAINER))
    await store.ledger.failed(Kind.TASK, CONTAINER, "busy", time.time() + 5)
    await store.close()
    await command.run(settings(node), Down(node), CONTAINER, "table", FakeMounts())
    lines = capsys.readouterr().out.splitlines()
    assert "    next: when the daemon runs again, which it doesn't" in lines
    assert [line.split()[2] for line in lines[-2:]] == ["intended", "failed"]


async def test_a_name_that_nobody_has(node: FakeNode) -> None:
    with pytest.raises(NotFound, match="'nobody' is none of the sandboxes and containers in the ledger"):
        await command.run(settings(node), Daemon(node), "nobody", "table")
