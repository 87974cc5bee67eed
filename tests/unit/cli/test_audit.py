"""`orlop audit`: where the ledger comes from, what is printed, and the exit code."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from agent.cli import audit as command
from agent.config.settings import Settings
from agent.daemon import layout
from agent.errdefs import DeadlineExceeded, Unavailable
from agent.leaks import audit
from agent.pods.context import Pods
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from agent.store.store import Store
from cri.api import admin_pb2
from cri.client import Client
from cri.server import admin
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, STRANGER, FakeNode


class FakeDaemon(Client):
    """Answers Ledger as the real one does, with the entries of a node; or fails."""

    def __init__(self, node: FakeNode, failure: Exception | None = None) -> None:
        self._pods = cast(Pods, SimpleNamespace(ledger=SimpleNamespace(all=lambda: node.ledger)))
        self._failure = failure

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        assert method == "Ledger"
        if self._failure is not None:
            raise self._failure
        answer = await admin.ledger(self._pods, admin_pb2.LedgerRequest())
        return admin_pb2.LedgerResponse.FromString(answer.SerializeToString())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node = FakeNode(tmp_path)
    monkeypatch.setattr(layout, "places", lambda _: node.places)
    monkeypatch.setattr(command, "Inventory", lambda: node.network)
    monkeypatch.setattr(command, "find", functools.partial(audit, settle=0, ask=node.ask))
    return node


def settings(node: FakeNode) -> Settings:
    return Settings(state_dir=node.places.state_dir, root_dir=node.places.root_dir, socket=Path(node.places.address))


async def test_a_clean_node(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command.audit(settings(node), FakeDaemon(node), "table", 300) == command.CLEAN
    assert capsys.readouterr().out == "clean: the node is as the ledger says\n"
    assert await command.audit(settings(node), FakeDaemon(node), "json", 300) == command.CLEAN
    assert json.loads(capsys.readouterr().out) == []


async def test_a_leak_beside_what_the_daemon_owns(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    started = node.shim(7, SANDBOX)
    node.has(node.places.bundles / SANDBOX)
    node.owns(Kind.SHIM, SANDBOX, pid=7, start_time=started)
    left = node.has(node.places.bundles / STRANGER)
    assert await command.audit(settings(node), FakeDaemon(node), "json", 300) == command.LEAKS
    [row] = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["what"], row["state"], row["owner"]) == ("bundle", str(left), "leaked", "orlop")
    assert row["since"] == left.stat().st_mtime
    assert await command.audit(settings(node), FakeDaemon(node), "table", 300) == command.LEAKS
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["KIND", "WHAT", "OWNER", "STATE", "SURE", "SINCE", "PINS", "WHY", "RELEASES"]
    assert "bundle" in lines[0]


@pytest.mark.parametrize("missing", [True, False])
async def test_what_is_missing_or_was_not_released_is_no_clean_node(node: FakeNode, missing: bool) -> None:
    entry = node.owns(Kind.SNAPSHOT, CONTAINER)
    if not missing:
        node.ledger[:] = [entry.failed("busy", NOW, NOW + 1)]
    assert await command.audit(settings(node), FakeDaemon(node), "table", 300) == command.LEAKS


async def test_what_can_not_be_told_is_neither_clean_nor_a_leak(node: FakeNode) -> None:
    (node.places.proc / "7/stat").mkdir(parents=True)
    assert await command.audit(settings(node), FakeDaemon(node), "table", 300) == command.CANNOT_LOOK


async def stored(node: FakeNode) -> Store:
    """The store of a daemon that has a bundle."""
    node.has(node.places.bundles / CONTAINER)
    store = await Store.open(node.places.state_dir, node.places.root_dir)
    await store.ledger.intend(Intent(Kind.TASK, CONTAINER, SANDBOX, CONTAINER))
    return store


async def test_the_files_of_a_daemon_that_is_down(node: FakeNode) -> None:
    await (await stored(node)).close()
    assert await command.audit(settings(node), FakeDaemon(node, Unavailable("nobody listens")), "table", 300) == command.CLEAN
    assert await command.audit(settings(node), None, "table", 300) == command.CLEAN
    node.has(node.places.bundles / STRANGER)
    assert await command.audit(settings(node), None, "table", 300) == command.LEAKS
    store = await Store.open(node.places.state_dir, node.places.root_dir)  # the audit has given the lock back
    await store.close()


@pytest.mark.parametrize("failure", [Unavailable("it is starting"), DeadlineExceeded("it hangs")])
async def test_a_daemon_that_lives_and_does_not_answer(node: FakeNode, failure: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    store = await stored(node)
    assert await command.audit(settings(node), FakeDaemon(node, failure), "table", 300) == command.CANNOT_LOOK
    assert capsys.readouterr().err.startswith("orlop: the node could not be audited: ")
    await store.close()


async def test_a_daemon_that_knows_more_kinds(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    class Newer(FakeDaemon):
        async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
            return admin_pb2.LedgerResponse(resources=[admin_pb2.Resource(kind="quota", key="q", state="held", data="{}")])

    assert await command.audit(settings(node), Newer(node), "table", 300) == command.CANNOT_LOOK
    assert "ledger entry quota q that this command doesn't know" in capsys.readouterr().err


@pytest.mark.usefixtures("logging")
def test_a_socket_of_another_daemon_than_the_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text('socket = "/run/a.sock"\n')
    assert command.run(config, "/run/b.sock", "table", 300) == command.CANNOT_LOOK
    assert f"/run/b.sock is not the socket of {config}" in capsys.readouterr().err


@pytest.mark.usefixtures("logging")
def test_a_configuration_that_can_not_be_read(tmp_path: Path) -> None:
    assert command.run(tmp_path / "none.toml", str(Settings.socket), "table", 300) == command.CANNOT_LOOK


async def test_a_node_that_never_had_an_agent(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a containerd that leaked."""
    node.containerd(CONTAINER)
    node.shim(7, STRANGER, address=str(node.places.other_runtimes[0].socket))
    assert await command.audit(settings(node), FakeDaemon(node, Unavailable("nobody listens")), "json", 300) == command.LEAKS
    [row] = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["owner"], row["sure"]) == ("shim", "containerd", "certain")
    assert await command.audit(settings(node), None, "json", 1e10) == command.CLEAN
    assert not node.places.state_dir.exists()


async def test_one_line_for_the_node_problem_detector(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command.audit(settings(node), None, "npd", 300) == command.CLEAN
    node.has(node.places.bundles / STRANGER)
    node.has(node.places.bundles / CONTAINER)
    node.shim(7, STRANGER)
    assert await command.audit(settings(node), None, "npd", 300) == command.LEAKS
    clean, leaks = capsys.readouterr().out.splitlines()
    assert clean == "nothing is leaked"
    assert leaks.startswith("3 leaked: 2 bundle, 1 shim; oldest ")


async def test_that_line_says_what_it_can_not_tell(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    (node.places.proc / "7/stat").mkdir(parents=True)
    assert await command.audit(settings(node), None, "npd", 300) == command.CANNOT_LOOK
    assert capsys.readouterr().out == "something can't be looked at; see `orlop audit`\n"


@pytest.mark.usefixtures("logging")
def test_that_line_is_there_even_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(tmp_path / ("none" * 40), str(Settings.socket), "npd", 300) == command.CANNOT_LOOK
    [line] = capsys.readouterr().out.splitlines()
    assert (line[:14], len(line)) == ("audit failed: ", 80)
