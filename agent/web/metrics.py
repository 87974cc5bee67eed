"""`GET /metrics` in Prometheus' text format, and `GET /healthz`.

Scrapes are rare and small, so one short HTTP/1.0-style exchange per connection is enough, and no web framework sits in
the daemon's address space.
"""

from __future__ import annotations

import asyncio
import re

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from agent import metrics
from agent.aio import in_thread, within
from agent.errdefs import InvalidArgument, OrlopError, Unavailable

_REQUEST_BUDGET = 5.0
_REQUEST_LIMIT = 16 << 10
_PORT = re.compile("[0-9]{1,5}")
_LAST_PORT = 65535


class MetricsServer:
    """Listens on `address`, "127.0.0.1:9745", and tells what is in `registry`; an empty address means: no metrics."""

    def __init__(self, address: str, registry: CollectorRegistry = metrics.registry) -> None:
        self._address = address
        self._registry = registry
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises Unavailable when the address is taken, InvalidArgument when it is none."""
        if not self._address:
            return
        host, _, port = self._address.rpartition(":")
        if not host or not _PORT.fullmatch(port) or int(port) > _LAST_PORT:
            raise InvalidArgument(f"metrics address {self._address!r} is not HOST:PORT")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=_REQUEST_LIMIT)
        except OSError as error:
            raise Unavailable(f"metrics can't be served on {self._address}: {error.strerror}") from error

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # drained means: sent
        try:
            head = await within(_REQUEST_BUDGET, reader.readuntil(b"\r\n\r\n"), "a metrics request")
            writer.write(await _answer(head.split(b" ", 2)[1] if head.startswith(b"GET ") else b"", self._registry))
            await within(_REQUEST_BUDGET, writer.drain(), "a metrics answer")
        except (OrlopError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            writer.transport.abort()  # a scraper that hung up, talks something else, or doesn't read: its buffer goes with it
        finally:
            writer.close()


async def _answer(path: bytes, registry: CollectorRegistry) -> bytes:
    match path.partition(b"?")[0]:
        case b"/metrics":
            status, kind, body = b"200 OK", CONTENT_TYPE_LATEST.encode(), await in_thread(generate_latest, registry)
        case b"/healthz":
            status, kind, body = b"200 OK", b"text/plain", b"ok\n"
        case _:
            status, kind, body = b"404 Not Found", b"text/plain", b"/metrics and /healthz are here\n"
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, kind, len(body), body)
