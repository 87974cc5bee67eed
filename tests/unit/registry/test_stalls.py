"""Hosts that fall silent, at each phase of a pull: every wait has an end, and says on what it waited."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent import timeouts
from agent.aio import in_thread
from agent.errdefs import Unavailable, Unknown
from agent.registry import Repository
from tests.images import digest
from tests.unit.registry.conftest import DATA, DOCUMENT, LIMIT, PASSWORD, Client, fetch
from tests.unit.registry.fake import FakeRegistry, Reply, demand, redirect, serving

pytestmark = pytest.mark.usefixtures("filled", "short")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "REGISTRY_ANSWER", 0.01)
    monkeypatch.setattr(timeouts, "PULL_SILENCE", 0.01)


async def resolve(repository: Repository) -> object:
    return await repository.resolve("1", LIMIT)


async def manifest(repository: Repository) -> object:
    return await repository.manifest(digest(DOCUMENT), LIMIT)


SLOW = r"can't be reached: there is no connection within its dial_timeout|does not answer in time|has sent nothing for 0\.01 s|answers 503"
"""Which of them it is, is a matter of chance: the budgets are as good as equal here."""
SILENT = Reply(200, DATA, stall=-1)
BROKEN_OFF = Reply(200, DOCUMENT, stall=3)


@pytest.mark.parametrize(
    ("path", "reply", "act"),
    [
        ("/manifests/1", SILENT, resolve),
        ("/manifests/1", Reply(200, DOCUMENT, stall=-2), resolve),
        ("/manifests/sha256", SILENT, manifest),
        ("/manifests/sha256", BROKEN_OFF, manifest),
        ("/manifests/sha256", Reply(503, b'{"errors": []}', stall=5), manifest),
        ("/token", SILENT, resolve),
        ("/token", BROKEN_OFF, resolve),
        ("/blobs/", SILENT, fetch),
        ("/blobs/", Reply(200, DATA, stall=0), fetch),
        ("/blobs/", redirect("/silent"), fetch),
    ],
)
async def test_silence(
    client: Client, registry: FakeRegistry, path: str, reply: Reply, act: Callable[[Repository], Awaitable[object]]
) -> None:
    client.hosts(f'server = "http://{registry.domain}"\ndial_timeout = "10ms"')
    registry.rule(reply, path=path)
    registry.rule(SILENT, path="/silent")
    if path == "/token":
        registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer t"))
    async with client.open("reg.test", credentials=PASSWORD) as repository:
        with pytest.raises(Unavailable, match=SLOW):
            await act(repository)
    assert len(client.pauses) == 4  # tried again as often as anything that may pass


async def test_a_dead_registry_is_told_of_after_a_while(client: Client, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "REGISTRY_RETRY", 0.0)
    registry.rule(SILENT)
    async with client.open(registry) as repository:
        with pytest.raises(Unavailable):
            await resolve(repository)
    assert len(registry.seen) == 1  # and not 5


@pytest.mark.parametrize("tls", [True, False])
async def test_a_host_that_takes_connections_and_nothing_else(client: Client, tls: bool) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(silent) as domain:
        client.hosts(f'server = "{"https" if tls else "http"}://{domain}"\ndial_timeout = "10ms"')
        async with client.open("reg.test") as repository:
            with pytest.raises(Unavailable, match=SLOW):
                await resolve(repository)


async def test_a_document_in_drops(client: Client) -> None:
    """Never silent for long, and never done."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
        while True:
            writer.write(b"{")
            await asyncio.sleep(0.002)

    async with serving(drip) as domain:
        client.hosts(f'server = "http://{domain}"')
        async with client.open("reg.test") as repository:
            with pytest.raises(Unavailable, match=SLOW):
                await manifest(repository)


async def test_a_mirror_that_is_silent_costs_one_wait_for_all(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    client.hosts(f'server = "http://{registry.domain}"\n[host."http://{mirror.domain}"]\ndial_timeout = "10ms"')
    mirror.rule(SILENT)
    async with client.open("reg.test") as repository:
        await resolve(repository)
        await manifest(repository)
        assert await fetch(repository) == DATA
    assert len(mirror.seen) == 2  # asked twice, then last


async def test_headers_without_end(client: Client) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n" * 10_000)
            await writer.drain()

    async with serving(endless) as domain:
        client.hosts(f'server = "http://{domain}"')
        async with client.open("reg.test") as repository:
            with pytest.raises(Unknown, match="not HTTP"):
                await manifest(repository)


async def test_a_name_server_that_is_silent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes none of the threads that the rest of the daemon works with."""
    answered = threading.Event()

    def wait(*_: object) -> None:
        answered.wait()
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    client.hosts('server = "http://reg.test"\ndial_timeout = "10ms"')
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match=SLOW):
            await resolve(repository)
    assert await in_thread(lambda: "works")
    answered.set()


async def test_a_name_that_is_none(client: Client, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, port: int, *_: object) -> object:
        if name != "known.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client.hosts(f'server = "http://known.test:{registry.port}"\n[host."http://unknown.test"]')
    async with client.open("reg.test") as repository:
        assert await fetch(repository) == DATA
    async with client.open("reg.test") as repository:
        assert await resolve(repository) == digest(DOCUMENT)
    assert client.pauses == []  # there was another host to ask
    client.hosts('server = "http://unknown.test"')
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match=r"http://unknown\.test can't be reached: .*not known"):
            await resolve(repository)
