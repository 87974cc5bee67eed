"""Calls to a shim over one unix connection; `agent.runtime.v2` holds one `Client` per shim.

Built on `asyncio.Protocol`: a call is one `write`, an answer one callback, no task and no queue between. The id of a call is taken
and its frame written in one stretch without an `await`, which is the lock that keeps ids increasing on the wire.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from agent import failpoints, log, metrics, timeouts
from agent.aio import Supervisor, within
from agent.api.request_pb2 import Request
from agent.errdefs import Closed, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from agent.ttrpc.protocol import Answer, ClientConnection, Failure, Late, Stray

M = TypeVar("M", bound=Message)
OnClose = Callable[[], Awaitable[None]]

_log = log.get("ttrpc")
_BACKLOG_FULL_PAUSE = 0.01
_NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED})


class Client(asyncio.Protocol):
    """A connection to one shim. Made by `connect()`; safe for any number of concurrent calls.

    It is *closed* after EOF, a reset, EPIPE, a short read, or our own `close()`; there is no other end and no reconnect. Then every
    call, outstanding or new, raises `Closed`, and `on_close` runs once. Closed doesn't prove that the shim is dead.
    """

    def __init__(self, address: str, supervisor: Supervisor, on_close: OnClose | None) -> None:
        self.address = address
        self._supervisor = supervisor
        self._on_close = on_close
        self._connection = ClientConnection()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._transport: asyncio.Transport  # since connection_made(), which connect() waits for
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed_because = ""
        self._on_close_returned = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: str, *, supervisor: Supervisor, on_close: OnClose | None = None, budget: float = timeouts.SHIM_DIAL
    ) -> Client:
        """Dial a shim.

        Args:
            address: As a shim's `start` prints it: `unix:///path`. Without the scheme, the path, or if there is no such file the
                abstract name; what doesn't begin with a slash is an abstract name.
            supervisor: Owns the task in which `on_close` runs.
            on_close: Awaited once, in a task of its own, when the connection is closed. A peer that closes at once can make it run
                before `connect()` has returned. Never run if `connect()` raised.
            budget: Seconds. Waits only for a listener whose queue is full.

        Raises:
            Unavailable: Nobody listens there (ENOENT, ECONNREFUSED), found out at once.
            DeadlineExceeded: The listener's queue stayed full.
            OSError: It can't be found out now (EMFILE, ENOMEM, EACCES ...); this says nothing about the peer.
            InvalidArgument: The address is of another kind.
        """
        candidates = _candidates(address)
        await failpoints.hit("ttrpc.connect.dial")
        connected = await within(budget, _dial(address, candidates), f"connecting to {address}")
        client = cls(address, supervisor, on_close)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=connected)
        except BaseException:
            client._on_close = None  # no client is handed out, so nobody is told of its end
            connected.close()
            raise
        return client

    @property
    def closed(self) -> bool:
        return bool(self._closed_because)

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """Call a unary method.

        A caller that is cancelled stops waiting and nothing else: ttrpc has no cancel frame, the shim goes on, and its late answer
        is dropped and counted. Only a `timeout` or a close reaches the shim, and then it kills what works for the call (the engine!),
        so Create, Start and Delete are called without one.

        Args:
            timeout: Seconds; sent along as `timeout_nano`, and bounds our own wait.

        Raises:
            OrlopError: The class that belongs to the status of the answer, with the shim's own text.
            DeadlineExceeded: No answer within `timeout`; also a status that a shim can send.
            Closed: The connection is closed, or was before the answer came.
            ResourceExhausted: Request or answer is longer than ttrpc carries. A request isn't sent then.
            Internal: The answer is not what the protocol or `response` allows.
        """
        envelope = Request(service=service, method=method, payload=request.SerializeToString())
        if metadata:
            for key, value in metadata.items():
                envelope.metadata.add(key=key, value=value)
        try:
            async with asyncio.timeout(timeout) as scope:
                payload = await self._round_trip(envelope, scope)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{service}/{method} at {self.address}: no answer within {timeout:g} s") from error
        try:
            return response.FromString(payload)
        except DecodeError as error:
            raise Internal(f"{service}/{method} at {self.address}: the answer is not a {response.DESCRIPTOR.full_name}: {error}") from error

    async def _round_trip(self, envelope: Request, scope: asyncio.Timeout) -> bytes:
        while not self._writable.is_set():
            await self._writable.wait()
        loop = asyncio.get_running_loop()
        if (deadline := scope.when()) is not None:
            if (left := deadline - loop.time()) <= 0:
                raise TimeoutError
            envelope.timeout_nano = max(1, int(left * 1e9))  # 0 would mean: no limit
        if self._closed_because:
            raise Closed(self._closed_because)
        stream_id, frame = self._connection.send_request(envelope)
        answer: asyncio.Future[bytes] = loop.create_future()
        self._calls[stream_id] = answer
        self._transport.write(frame)
        try:
            return await answer
        finally:
            if self._calls.pop(stream_id, None) is not None:
                self._connection.abandon(stream_id)

    def close(self) -> None:
        """Close the connection; the shim then cancels every call on it. Closed already: a no-op."""
        self._close("by us")

    async def wait_closed(self) -> None:
        """Wait until the connection is closed *and* `on_close` has returned (or raised, which its supervisor logs)."""
        await self._on_close_returned.wait()

    def _close(self, cause: str) -> None:
        if self._closed_because:
            return
        self._closed_because = f"the connection to {self.address} was closed {cause}"
        self._transport.abort()
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                answer.set_exception(Closed(self._closed_because))
        self._writable.set()
        if self._on_close is None:
            self._on_close_returned.set()
            return
        task = self._supervisor.start(self._tell_owner(self._on_close), name=f"on-close of {self.address}")
        task.add_done_callback(lambda _: self._on_close_returned.set())  # also when cancelled before it ever ran

    async def _tell_owner(self, on_close: OnClose) -> None:
        await on_close()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for event in self._connection.receive_data(data):
            match event:
                case Answer(stream_id, payload) if not (answer := self._calls.pop(stream_id)).done():
                    answer.set_result(payload)
                case Failure(stream_id, error) if not (answer := self._calls.pop(stream_id)).done():
                    answer.set_exception(error)
                case Answer() | Failure() | Late():  # "done" above: the caller was cancelled in this very turn of the loop
                    metrics.ttrpc_late_answers.inc()
                case Stray(stream_id):
                    _log.warning("answer to a call that was never made", address=self.address, stream=stream_id)

    def eof_received(self) -> None:
        self._close("by the peer, in the middle of a frame" if self._connection.midway else "by the peer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(f"by the peer: {exc}" if exc else "by the peer")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<ttrpc Client {self.address} {state}: {len(self._calls)} calls awaited, {self._connection.outstanding} outstanding>"


def _candidates(address: str) -> tuple[str, ...]:
    """Socket names to try, in order; see `Client.connect`."""
    scheme, separator, path = address.partition("://")
    if separator:
        if scheme != "unix" or not path.startswith("/"):
            raise InvalidArgument(f"{address!r} is not the address of a unix socket, the only kind that shims are dialled by")
        return (path,)
    if not address:
        raise InvalidArgument("an empty shim address")
    return (address, "\0" + address) if address.startswith("/") else ("\0" + address,)


async def _dial(address: str, candidates: tuple[str, ...]) -> socket.socket:
    """A connected, non-blocking socket; raises `Unavailable` when nobody listens at any of the names, OSError when we can't tell."""
    refusals: list[str] = []
    for name in candidates:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await _connect(connection, name)
        except OSError as error:
            connection.close()
            if error.errno not in _NOBODY:
                raise
            refusals.append(error.strerror or str(error))
            if error.errno != errno.ENOENT:
                break
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise Unavailable(f"nobody listens at {address}: {', '.join(refusals)}")


async def _connect(connection: socket.socket, name: str) -> None:
    # EAGAIN from a unix socket means "queue full, ask again". asyncio's own connect takes it for "under way" and then reports success.
    while True:
        try:
            connection.connect(name)
        except BlockingIOError:
            await asyncio.sleep(_BACKLOG_FULL_PAUSE)
        else:
            return
