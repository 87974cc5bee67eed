"""`orlop watch` from its address to its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterable
from itertools import islice

import pytest

from agent import leaks, metrics
from agent.aio import in_thread
from agent.errdefs import InvalidArgument, Unavailable
from agent.watch import run
from agent.watch.service import JITTER, pauses
from tests.unit.leaks.fakes import STRANGER, FakeNode


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Life:
    """What the watch tells systemd; `ready` is done when it is."""

    def __init__(self, ready: Callable[[], object] = lambda: None) -> None:
        self.told: list[str] = []
        self._ready = ready

    def notify(self, state: str) -> None:
        self.told.append(state)
        if state == "READY=1":
            self._ready()

    def at_end(self) -> None:
        self.told.append("end")


async def nothing(_: Iterable[float]) -> None:
    await asyncio.Event().wait()


def stop(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(address: str, number: int) -> None:
    life = Life(lambda: stop(number))
    await run(address, 60, nothing, notify=life.notify, at_end=life.at_end)
    assert life.told == ["READY=1", "STOPPING=1", "end"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("watch")]


async def test_a_leak_is_served_and_those_numbers_alone_that_audits_set(node: FakeNode, address: str) -> None:
    node.shim(7, STRANGER)
    scraped: list[str] = []

    async def audits(waits: Iterable[float]) -> None:
        await leaks.watch(node.read, node.places, node.network, pauses=islice(waits, 1), ask=node.ask, sleep=node.sleep)
        scraped.append(await in_thread(lambda: urllib.request.urlopen(f"http://{address}/metrics").read().decode()))
        stop()
        await asyncio.Event().wait()

    life = Life()
    await run(address, 60, audits, notify=life.notify, at_end=life.at_end)
    [text] = scraped
    assert 'orlop_leaks{kind="shim",owner="orlop"} 1.0\n' in text
    assert node.slept[0] == 0  # at once
    names = set(re.findall("^# TYPE (?P<name>[a-z_]+?)(?:_total)? ", text, re.MULTILINE))
    assert names == {family.name for family in metrics.of_audits.collect()} < {family.name for family in metrics.registry.collect()}


async def test_an_address_that_is_taken_is_told_before_anything_else_is_done(address: str) -> None:
    life = Life()
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))), pytest.raises(Unavailable, match=address) as caught:
        await run(address, 60, nothing, notify=life.notify, at_end=life.at_end)
    assert "one `orlop watch` is enough" in caught.value.__notes__[0]
    assert life.told == []


async def test_what_is_no_address() -> None:
    with pytest.raises(InvalidArgument, match="is not HOST:PORT"):
        await run("9745", 60, nothing, notify=Life().notify, at_end=Life().at_end)


async def test_audits_that_end_by_a_bug_end_the_watch(address: str) -> None:
    """For systemd to see it: one that looks no more must not go on saying what it saw last."""

    async def audits(_: Iterable[float]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(address, 60, audits, notify=Life().notify, at_end=Life().at_end)


def test_pauses() -> None:
    first, *others = islice(pauses(60), 1000)
    assert first == 0
    assert all(60 * (1 - JITTER) <= pause <= 60 * (1 + JITTER) for pause in others)
    assert len(set(others)) > 900
