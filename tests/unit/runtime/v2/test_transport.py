"""Both transports keep one contract: answers, statuses, and a close that fails every call with `Closed`."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from agent import ttrpc
from agent.aio import Supervisor
from agent.api.runtime.task.v3.shim_pb2 import ConnectRequest, ConnectResponse
from agent.errdefs import Closed, DeadlineExceeded, NotFound, Unavailable, Unimplemented
from agent.runtime.v2 import transport
from agent.runtime.v2.bootstrap import Bootstrap

SERVICE = "containerd.task.v3.Task"
Handler = Callable[[ConnectRequest, dict[str, str]], Awaitable[ConnectResponse]]


@asynccontextmanager
async def ttrpc_server(path: Path, handler: Handler) -> AsyncIterator[None]:
    server = ttrpc.Server()

    async def handle(request: ConnectRequest, metadata: ttrpc.Metadata) -> ConnectResponse:
        return await handler(request, dict(metadata))

    server.register(SERVICE, "Connect", ConnectRequest, handle)
    await server.serve(path)
    try:
        yield
    finally:
        await server.stop(0)


@asynccontextmanager
async def grpc_server(path: Path, handler: Handler) -> AsyncIterator[None]:
    server = grpc.aio.server()

    async def handle(request: ConnectRequest, context: Any) -> ConnectResponse:
        try:
            return await handler(request, {str(key): str(value) for key, value in context.invocation_metadata()})
        except NotFound as error:
            return await context.abort(grpc.StatusCode.NOT_FOUND, str(error))  # type: ignore[no-any-return]  # abort never returns

    method = grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=ConnectRequest.FromString, response_serializer=ConnectResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Connect": method}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


SERVERS = {"ttrpc": ttrpc_server, "grpc": grpc_server}


@pytest.fixture(params=SERVERS)
def protocol(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor("test")
    yield supervisor
    await supervisor.stop(0)


async def dial(path: Path, protocol: str, supervisor: Supervisor, budget: float = 5) -> transport.Connection:
    return await transport.connect(Bootstrap(3, f"unix://{path}", protocol), "k8s.io", supervisor, budget)


async def greet(connection: transport.Connection, **how: float) -> ConnectResponse:
    return await connection.call(SERVICE, "Connect", ConnectRequest(id="c1"), ConnectResponse, **how)


async def test_a_call(tmp_path: Path, protocol: str, supervisor: Supervisor) -> None:
    seen: dict[str, str] = {}

    async def answer(request: ConnectRequest, metadata: dict[str, str]) -> ConnectResponse:
        seen.update(metadata)
        return ConnectResponse(shim_pid=7, version=request.id)

    async with SERVERS[protocol](tmp_path / "s", answer):
        connection = await dial(tmp_path / "s", protocol, supervisor)
        assert await greet(connection) == ConnectResponse(shim_pid=7, version="c1")
        assert "k8s.io" in (seen.get("containerd-namespace-ttrpc"), seen.get("containerd-namespace"))
        with pytest.raises(Unimplemented):
            await connection.call("containerd.task.v2.Task", "Connect", ConnectRequest(), ConnectResponse)
        assert not connection.closed
        connection.close()
        connection.close()


async def test_a_status(tmp_path: Path, protocol: str, supervisor: Supervisor) -> None:
    async def answer(request: ConnectRequest, metadata: dict[str, str]) -> ConnectResponse:
        raise NotFound("container not created: not found")

    async with SERVERS[protocol](tmp_path / "s", answer):
        connection = await dial(tmp_path / "s", protocol, supervisor)
        with pytest.raises(NotFound, match="not created"):
            await greet(connection)
        connection.close()


async def test_a_timeout(tmp_path: Path, protocol: str, supervisor: Supervisor) -> None:
    async def answer(request: ConnectRequest, metadata: dict[str, str]) -> ConnectResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with SERVERS[protocol](tmp_path / "s", answer):
        connection = await dial(tmp_path / "s", protocol, supervisor)
        with pytest.raises(DeadlineExceeded):
            await greet(connection, timeout=0.05)
        connection.close()


@pytest.mark.parametrize("who", ["we", "shim"])
async def test_a_close_fails_every_call(tmp_path: Path, protocol: str, supervisor: Supervisor, who: str) -> None:
    called = asyncio.Event()

    async def answer(request: ConnectRequest, metadata: dict[str, str]) -> ConnectResponse:
        called.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with SERVERS[protocol](tmp_path / "s", answer):
        connection = await dial(tmp_path / "s", protocol, supervisor)
        calls = [asyncio.ensure_future(greet(connection)) for _ in range(3)]
        await called.wait()
        if who == "we":
            connection.close()
            await connection.wait_closed()
            assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [Closed] * 3
    await connection.wait_closed()
    assert connection.closed
    assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [Closed] * 3
    with pytest.raises(Closed):
        await greet(connection)


async def test_a_caller_that_gives_up_leaves_the_connection(tmp_path: Path, protocol: str, supervisor: Supervisor) -> None:
    called = asyncio.Event()

    async def answer(request: ConnectRequest, metadata: dict[str, str]) -> ConnectResponse:
        if not called.is_set():
            called.set()
            await asyncio.Event().wait()
        return ConnectResponse(shim_pid=7)

    async with SERVERS[protocol](tmp_path / "s", answer):
        connection = await dial(tmp_path / "s", protocol, supervisor)
        call = asyncio.ensure_future(greet(connection))
        await called.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await greet(connection)).shim_pid == 7
        connection.close()


async def test_nobody_listens(tmp_path: Path, protocol: str, supervisor: Supervisor) -> None:
    with pytest.raises(Unavailable, match="nobody listens"):
        await dial(tmp_path / "s", protocol, supervisor)


async def test_who_can_not_be_asked_is_not_said_to_be_absent(
    tmp_path: Path, protocol: str, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    for module in ("agent.ttrpc.client", "agent.runtime.v2.transport"):  # not everybody's: gRPC itself uses sockets of Python
        monkeypatch.setattr(f"{module}.socket", SimpleNamespace(**{**vars(socket), "socket": none_left}))
    with pytest.raises(OSError, match="Too many open files"):
        await dial(tmp_path / "s", protocol, supervisor)
