"""`orlop watch`: where it looks, what it is told, and that it leaves no trace."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent import watch as package
from agent.cli import watch as command
from agent.cli.main import main
from agent.config.settings import Settings
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from agent.store.store import Store
from tests.unit.leaks.fakes import CONTAINER, SANDBOX


def settings(top: Path) -> Settings:
    return Settings(state_dir=top / "run", root_dir=top / "lib", socket=top / "run/orlop.sock")


async def test_a_node_that_never_had_an_agent_has_nothing_and_stays_as_it_is(tmp_path: Path) -> None:
    read = await command.read(settings(tmp_path))
    assert (list(read.resources), read.served) == ([], False)
    assert os.listdir(tmp_path) == []


async def test_the_files_of_an_agent_that_is_down(tmp_path: Path) -> None:
    its = settings(tmp_path)
    store = await Store.open(its.state_dir, its.root_dir)
    await store.ledger.intend(Intent(Kind.TASK, CONTAINER, SANDBOX, CONTAINER))
    await store.close()
    assert [resource.key for resource in (await command.read(its)).resources] == [CONTAINER]
    store = await Store.open(its.state_dir, its.root_dir)  # its lock is free again
    await store.close()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command hands to `agent.watch`, which doesn't run."""
    seen: dict[str, Any] = {}

    async def run(address: str, interval: float, audits: Callable[..., Any], **_: object) -> None:
        seen.update(address=address, interval=interval, audits=audits)

    monkeypatch.setattr(package, "run", run)
    return seen


@pytest.mark.usefixtures("logging")
def test_what_is_not_said_comes_from_the_configuration(tmp_path: Path, given: dict[str, Any]) -> None:
    config = tmp_path / "config.toml"
    config.write_text('metrics_address = "127.0.0.1:1234"\n')
    assert CliRunner().invoke(main, ["watch", "--config", str(config)]).exit_code == 0
    assert (given["address"], given["interval"]) == ("127.0.0.1:1234", 60)
    assert CliRunner().invoke(main, ["watch", "--config", str(config), "--address", "", "--interval", "5"]).exit_code == 0
    assert (given["address"], given["interval"]) == ("", 5)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("interval", ["0", "-1", "1e9", "soon"])
def test_what_is_no_interval(interval: str) -> None:
    assert CliRunner().invoke(main, ["watch", "--interval", interval]).exit_code == 2


@pytest.mark.usefixtures("logging")
def test_a_second_one_on_an_address_is_refused_with_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{tmp_path}/run"\nroot_dir = "{tmp_path}/lib"\n')
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with socket.create_server(("127.0.0.1", 0)) as first:
        address = f"127.0.0.1:{first.getsockname()[1]}"
        done = CliRunner().invoke(main, ["watch", "--config", str(config), "--address", address])
    assert done.exit_code == 1
    assert done.output.startswith(f"orlop: metrics can't be served on {address}: ")
    assert "one `orlop watch` is enough" in done.output
    assert handlers == {number: signal.getsignal(number) for number in handlers}
