"""Calls by name, made from the services' descriptors."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from agent.errdefs import from_code
from cri.api import admin_pb2, api_pb2

_METHODS = {
    method.name: (f"/{service.full_name}/{method.name}", GetMessageClass(method.output_type))
    for file in (api_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Client:
    """`async with Client("/run/orlop/orlop.sock") as client: await client.call("Version", VersionRequest())`."""

    def __init__(self, socket: str) -> None:
        self.socket = socket.removeprefix("unix://")
        self._channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=[("grpc.max_receive_message_length", -1)])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._channel.close()

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        """Call `method` of RuntimeService, ImageService or Admin; returns its response message. `timeout` in seconds.

        Raises:
            errdefs.OrlopError: the class of the status code, with the server's message; Unavailable if nobody serves.
        """
        path, response = _METHODS[method]
        remote = self._channel.unary_unary(path, request_serializer=_serialise, response_deserializer=response.FromString)
        try:
            return await remote(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            text = error.details() or error.code().name
            if text.startswith("failed to connect"):  # gRPC's own words, not a server's
                text = f"nobody serves {self.socket}: {text}"
            raise from_code(error.code().value[0], text) from error


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
