"""Connections to shims: one small interface over ttrpc, which nearly all speak, and gRPC.

The only gRPC client beside `cri.client`. Used by `shim`, which adds what is the same for both: versions, redialling, one
close authority.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from agent import ttrpc
from agent.aio import Supervisor
from agent.errdefs import Closed, DeadlineExceeded, Unavailable, from_code
from agent.runtime.v2.bootstrap import Bootstrap

M = TypeVar("M", bound=Message)

_NOBODY = (FileNotFoundError, ConnectionRefusedError)


class Connection(Protocol):
    """One connection. Once closed, whatever the cause, every call on it raises `Closed`; that doesn't prove the shim dead."""

    @property
    def closed(self) -> bool: ...

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        """A unary call. `timeout` (seconds) reaches the shim, which kills what works for the call when it runs out.

        Raises OrlopError: the class that the shim's status names, DeadlineExceeded, or Closed.
        """
        ...

    def close(self) -> None:
        """Close; the shim cancels every call on it. Idempotent."""
        ...

    async def wait_closed(self) -> None: ...


Connect = Callable[[Bootstrap, str, Supervisor, float], Awaitable[Connection]]
"""Dial: where, containerd namespace, owner of the connection's tasks, budget in seconds."""


async def connect(bootstrap: Bootstrap, namespace: str, supervisor: Supervisor, budget: float) -> Connection:
    """Dial a shim.

    Raises:
        Unavailable: nobody listens there.
        DeadlineExceeded: it didn't accept within `budget` seconds.
        OSError: that can't be found out now (EMFILE, EACCES ...), which says nothing about the shim.
        InvalidArgument: an address of another kind.
    """
    if bootstrap.protocol == "grpc":
        return await _Grpc.connect(bootstrap.address, namespace, supervisor, budget)
    return _Ttrpc(await ttrpc.Client.connect(bootstrap.address, supervisor=supervisor, budget=budget), namespace)


class _Ttrpc:
    def __init__(self, client: ttrpc.Client, namespace: str) -> None:
        self._client = client
        self._metadata = {"containerd-namespace-ttrpc": namespace}

    @property
    def closed(self) -> bool:
        return self._client.closed

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        return await self._client.call(service, method, request, response, timeout=timeout, metadata=self._metadata)

    def close(self) -> None:
        self._client.close()

    async def wait_closed(self) -> None:
        await self._client.wait_closed()


class _Grpc:
    """A channel that is used like a connection: when it is lost once, it is closed, and never reconnects by itself."""

    def __init__(self, address: str, channel: grpc.aio.Channel, namespace: str, supervisor: Supervisor) -> None:
        self._address = address
        self._channel = channel
        self._metadata = (("containerd-namespace", namespace),)
        self._supervisor = supervisor
        self._closed = asyncio.Event()
        supervisor.start(self._watch(), name=f"channel to {address}")

    @classmethod
    async def connect(cls, address: str, namespace: str, supervisor: Supervisor, budget: float) -> _Grpc:
        target = f"unix:{address.removeprefix('unix://')}"
        channel = grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),))
        try:
            async with asyncio.timeout(budget):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        _knock(address)
                        raise Unavailable(f"nobody listens at {address}")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError as error:
            await channel.close()
            raise DeadlineExceeded(f"connecting to {address} took longer than {budget:g} s") from error
        except BaseException:
            await channel.close()
            raise
        return cls(address, channel, namespace, supervisor)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        if self._closed.is_set():
            raise Closed(f"the connection to {self._address} is closed")
        call = self._channel.unary_unary(
            f"/{service}/{method}", request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        try:
            return await call(request, timeout=timeout, metadata=self._metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed.is_set() and task is not None and not task.cancelling():  # a channel that is closed cancels its calls
                raise Closed(f"the connection to {self._address} is closed") from None
            raise
        except grpc.aio.AioRpcError as error:
            if self._closed.is_set() or error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Closed(f"the connection to {self._address} is closed: {error.details()}") from error
            raise from_code(error.code().value[0], error.details() or "") from error

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._supervisor.start(self._channel.close(), name=f"closing {self._address}")

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def _watch(self) -> None:
        await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self.close()


def _knock(address: str) -> None:
    """Raise the OSError for which no connection can be had, if it is not that nobody listens: gRPC doesn't tell which it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe, suppress(*_NOBODY, BlockingIOError):
        probe.connect(address.removeprefix("unix://"))
