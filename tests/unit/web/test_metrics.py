"""The metrics endpoint: what scrapers get, and what it does with those that aren't."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from agent import metrics
from agent.errdefs import InvalidArgument, Unavailable
from agent.web import MetricsServer
from agent.web import metrics as web


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = MetricsServer("127.0.0.1:0")
    await server.start()
    assert server._server is not None
    yield server._server.sockets[0].getsockname()[1]
    await server.stop()


async def exchange(port: int, request: bytes) -> bytes:
    """What the server says until it hangs up."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def test_metrics_in_the_text_format(port: int) -> None:
    metrics.mount_busy.inc()
    head, _, body = (await exchange(port, get("/metrics"))).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert int(headers["Content-Length"]) == len(body)
    assert b"\norlop_mount_busy_total " in body
    assert all(line.startswith((b"#", b"orlop_")) for line in body.splitlines())


@pytest.mark.parametrize(
    ("path", "status"),
    [("/metrics?name[]=x", "200 OK"), ("/healthz", "200 OK"), ("/", "404 Not Found"), ("/metrics/../etc/passwd", "404 Not Found")],
)
async def test_paths(port: int, path: str, status: str) -> None:
    assert (await exchange(port, get(path))).startswith(f"HTTP/1.1 {status}\r\n".encode())


@pytest.mark.parametrize(
    "request_", [b"POST /metrics HTTP/1.1\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"GET \r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
async def test_other_requests_find_nothing(port: int, request_: bytes) -> None:
    assert (await exchange(port, request_)).startswith(b"HTTP/1.1 404 ")


async def test_a_head_without_an_end_is_given_up(port: int) -> None:
    assert await exchange(port, b"GET /metrics" + b"x" * (1 << 20)) == b""
    assert (await exchange(port, get("/healthz"))).endswith(b"ok\n")


async def test_a_scraper_that_sends_nothing_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_REQUEST_BUDGET", 0.05)
    assert await exchange(port, b"GET ") == b""


async def test_a_scraper_that_reads_nothing_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_REQUEST_BUDGET", 0.05)
    monkeypatch.setattr(web, "generate_latest", lambda _: bytes(64 << 20))
    with socket.create_connection(("127.0.0.1", port)) as scraper:
        scraper.sendall(get("/metrics"))
        loop = asyncio.get_running_loop()
        scraper.setblocking(False)
        while not (serving := {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_serve"}):
            await asyncio.sleep(0)
        await asyncio.wait(serving, timeout=10)
        received = 0
        async with asyncio.timeout(10):
            try:
                while chunk := await loop.sock_recv(scraper, 1 << 20):
                    received += len(chunk)
            except ConnectionResetError:
                pass
    assert received < 64 << 20


@pytest.mark.parametrize(
    "address", ["9745", ":9745", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:²", "127.0.0.1:" + "9" * 5000]
)  # fmt: skip
async def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidArgument, match="is not HOST:PORT"):
        await MetricsServer(address).start()


async def test_an_address_that_is_taken(port: int) -> None:
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        await MetricsServer(f"127.0.0.1:{port}").start()


async def test_without_an_address_there_is_none() -> None:
    server = MetricsServer("")
    await server.start()
    await server.stop()
