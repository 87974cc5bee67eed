"""One socket, any service: handlers made from the services' descriptors, errors translated in one place.

A method without a verb answers UNIMPLEMENTED with its name. A verb returns a message or, on hot paths, the message's wire
bytes; that of a streaming method, an iterator of such.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from agent import log, metrics
from agent.aio import in_thread
from agent.errdefs import Code, InvalidArgument, OrlopError, Unavailable, Unimplemented, of_disk

Verb = Callable[[Any], Awaitable[Message | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]


class Stream(Protocol):
    """The messages of one call. Closed when they have been sent, or the client has gone."""

    def __aiter__(self) -> AsyncIterator[Message | bytes]: ...
    def aclose(self) -> Awaitable[None]: ...


StreamVerb = Callable[[Any], Stream]

_log = log.get("cri")
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAX_MESSAGE = 16 << 20
"""Bytes; the kubelet's own limit."""
_MAX_SENTENCE = 2000
"""Bytes of an error's text. Some clients take no more than 8 KiB of trailers, in which many a byte becomes three."""


class Edge:
    """A gRPC server on a unix socket that only root may use."""

    def __init__(self, socket: Path, verbs: Mapping[ServiceDescriptor, Mapping[str, Verb | StreamVerb]]) -> None:
        self._socket = socket
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
        )
        for service, methods in verbs.items():
            handlers = {method.name: _handler(method, methods.get(method.name)) for method in service.methods}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    async def start(self) -> None:
        """Listen. A socket left by an earlier run is replaced: the state directory's lock says that nobody serves it.

        Raises:
            Unavailable: there can't be a socket at this path.
        """
        await in_thread(_make_room, self._socket)
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as error:
            raise Unavailable(f"there can't be a socket at {self._socket}: a longer path than 107 bytes, or no right to") from error
        await in_thread(self._socket.chmod, 0o600)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no new calls, give those in flight `grace` seconds, close."""
        await self._server.stop(grace)
        await in_thread(self._socket.unlink, missing_ok=True)


def _make_room(socket: Path) -> None:
    socket.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)


def _handler(method: MethodDescriptor, verb: Verb | StreamVerb | None) -> grpc.RpcMethodHandler[Any, Any]:
    if verb is None:
        verb = _not_there(method)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream(method, cast(StreamVerb, verb)), response_serializer=_serialise)
    return grpc.unary_unary_rpc_method_handler(_answer(method, cast(Verb, verb)), response_serializer=_serialise)


def _not_there(method: MethodDescriptor) -> Verb | StreamVerb:
    def verb(request: Message) -> Any:
        raise Unimplemented(f"{method.full_name} is not implemented by orlop")

    return verb


def _answer(method: MethodDescriptor, verb: Verb) -> Callable[[bytes, Context], Awaitable[Message | bytes]]:
    async def answer(request: bytes, context: Context) -> Message | bytes:
        started = time.monotonic()
        metrics.cri_operations.labels(method.name).inc()
        try:
            return await verb(_parse(method, request))
        except (Exception, asyncio.CancelledError) as error:
            await _refuse(method.name, error, context)
        finally:
            metrics.cri_seconds.labels(method.name).observe(time.monotonic() - started)

    return answer


def _stream(method: MethodDescriptor, verb: StreamVerb) -> Callable[[bytes, Context], Awaitable[None]]:
    """Not timed: how long a stream lasts is the client's to say."""

    async def stream(request: bytes, context: Context) -> None:
        metrics.cri_operations.labels(method.name).inc()
        try:
            async with aclosing(verb(_parse(method, request))) as messages:
                await context.send_initial_metadata(())  # so that a client can tell from when on the stream has what happens
                async for message in messages:
                    await context.write(message)
        except (Exception, asyncio.CancelledError) as error:
            await _refuse(method.name, error, context)

    return stream


def _serialise(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _parse(method: MethodDescriptor, request: bytes) -> Message:
    """Here and not in gRPC, whose answer to a message that is none would be UNKNOWN."""
    try:
        return GetMessageClass(method.input_type).FromString(request)
    except DecodeError as error:
        raise InvalidArgument(f"the request is not a {method.input_type.name}: {error}") from error


async def _refuse(name: str, error: Exception | asyncio.CancelledError, context: Context) -> NoReturn:
    """End a call with the status and sentence of an error. A cancelled one has nobody to tell."""
    if isinstance(error, OSError):
        error = of_disk(error) or error
    match error:
        case asyncio.CancelledError():
            metrics.cri_errors.labels(name, Code.CANCELLED.name).inc()
            raise error
        case OrlopError():
            code, text = error.code, sentence(error)
            _log.info("call refused", method=name, code=code.name, error=text)
        case _:
            code, text = Code.INTERNAL, f"{name} failed inside the agent: {sentence(error) or type(error).__name__}"
            _log.error("call failed", method=name, error=text, exc_info=error)
    metrics.cri_errors.labels(name, code.name).inc()
    await context.abort(_CODES[code], text)
    raise AssertionError("abort raises")


def sentence(error: BaseException) -> str:
    """The error for people, with what was noted on its way up, as gRPC can carry it: a path's bytes that are no UTF-8 (PEP 383) are
    escaped, since an answer with one is never sent; and what is too long is cut in the middle."""
    text = "; ".join([str(error), *getattr(error, "__notes__", [])]).encode(errors="backslashreplace").decode()
    if len(text.encode()) <= _MAX_SENTENCE:
        return text
    text = text.encode("ascii", "backslashreplace").decode()
    return f"{text[: _MAX_SENTENCE // 2]} [...] {text[-_MAX_SENTENCE // 2 :]}"
