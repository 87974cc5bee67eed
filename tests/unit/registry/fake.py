"""A registry inside the test: serves what it is given, and lies, stalls, redirects or breaks off where a test wants it to."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agent.registry import Credentials
from tests.images import OCI, Blobs, add_image, digest, layer_tar

MANIFEST = f"{OCI}.manifest.v1+json"
INDEX = f"{OCI}.index.v1+json"


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclass
class Reply:
    """An answer. Content-Length is that of `body` unless `headers` say otherwise."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection is reset."""
    stall: int | None = None
    """Bytes of the body after which nothing comes any more; -1: not even the headers; -2: half of them."""


Rule = Callable[[Seen], Reply | None]


def basic(credentials: Credentials) -> str:
    return f"Basic {base64.b64encode(f'{credentials.username}:{credentials.password}'.encode()).decode()}"


def demand(*challenges: str, accept: str) -> Rule:
    """A registry that lets nobody in but with this Authorization."""
    return lambda seen: (
        None if seen.headers.get("authorization") == accept else Reply(401, headers={"WWW-Authenticate": ", ".join(challenges)})
    )


def redirect(to: str, status: int = 307) -> Reply:
    return Reply(status, b"moved", {"Location": to})


@asynccontextmanager
async def serving(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> AsyncIterator[str]:
    """A server that is no registry: `handle` has each connection until it returns. Yields "127.0.0.1:<port>"."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handle(reader, writer)
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


class FakeRegistry:
    """`async with FakeRegistry() as registry`; its images' domain is `registry.domain`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.manifests: dict[str, tuple[bytes, str]] = {}
        """By "repository:tag" and "repository@digest": data and media type."""
        self.blobs: dict[str, bytes] = {}
        self.rules: list[Rule] = []
        """Asked before anything is served; the first that answers counts."""
        self.gates: dict[str, asyncio.Event] = {}
        """By method: answers that wait."""
        self.seen: list[Seen] = []
        self.greetings = 0
        """Of TLS, where none is spoken."""
        self.busy = 0
        self.most_busy = 0
        """Requests for blobs at the same time."""
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeRegistry:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.domain = f"127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    # What it has

    def add_manifest(self, repository: str, data: bytes, media_type: str, *tags: str) -> str:
        self.manifests[f"{repository}@{digest(data)}"] = data, media_type
        for tag in tags:
            self.manifests[f"{repository}:{tag}"] = data, media_type
        return digest(data)

    def add_image(self, repository: str, layers: Sequence[Any], *tags: str, config: Mapping[str, Any] | None = None) -> str:
        """An image of layers as `tests.images.layer_tar` takes them; returns the digest of its manifest."""
        return self.add_blobs(repository, lambda blobs: add_image(blobs, [*map(layer_tar, layers)], config), *tags)

    def add_blobs(self, repository: str, build: Callable[[Blobs], Mapping[str, Any]], *tags: str) -> str:
        """What `build` makes with the tools of `tests.images`; it returns the descriptor of the manifest or index."""
        blobs = Blobs()
        top = build(blobs)
        found = {f"sha256:{name.rpartition('/')[2]}": data for name, data in blobs.files.items()}
        for name, data in found.items():
            if b'"mediaType": "' in data and (data.startswith(b'{"schemaVersion"')):
                self.add_manifest(repository, data, INDEX if b'"manifests"' in data else MANIFEST)
            else:
                self.blobs[name] = data
        return self.add_manifest(repository, found[top["digest"]], top["mediaType"], *tags)

    # What it does

    def rule(self, reply: Reply | Rule, *, method: str = "", path: str = "", times: int = -1) -> None:
        """Answer so, or as this function says, requests whose method is this and whose path has this in it; `times` times."""
        left = times

        def check(seen: Seen) -> Reply | None:
            nonlocal left
            if left == 0 or method not in ("", seen.method) or path not in seen.path:
                return None
            left -= 1
            return reply if isinstance(reply, Reply) else reply(seen)

        self.rules.append(check)

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        return [seen for seen in self.seen if method in ("", seen.method) and path in seen.path]

    def _reply(self, seen: Seen) -> Reply:
        for rule in self.rules:
            if (reply := rule(seen)) is not None:
                return reply
        repository, _, rest = seen.path.removeprefix("/v2/").partition("/manifests/")
        if rest:
            name = f"{repository}{'@' if rest.startswith('sha256:') else ':'}{rest}"
            if (found := self.manifests.get(name)) is None:
                return Reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')
            return Reply(200, found[0], {"Content-Type": found[1], "Docker-Content-Digest": digest(found[0])})
        blob = self.blobs.get(seen.path.rpartition("/blobs/")[2])
        if blob is None:
            return Reply(404)
        if (wanted := seen.headers.get("range", "")).startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(blob):
                return Reply(416)
            return Reply(206, blob[start:], {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"})
        return Reply(200, blob)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readexactly(1)
        if first == b"\x16":  # TLS where none is expected
            self.greetings += 1
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in head[1:] if line):
            headers[name.lower()] = ", ".join(filter(None, (headers.get(name.lower()), value.strip())))  # RFC 9110, 5.3
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, target, headers, body)
        self.seen.append(seen)
        is_blob = "/blobs/" in target
        self.busy += is_blob
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(0)
            if (gate := self.gates.get(method)) is not None:
                await gate.wait()
            return await self._send(self._reply(seen), method, writer)
        finally:
            self.busy -= is_blob

    async def _send(self, reply: Reply, method: str, writer: asyncio.StreamWriter) -> bool:
        if reply.stall == -1:
            await asyncio.Event().wait()
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} {reply.status}", *(f"{name}: {value}" for name, value in headers.items() if value), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        writer.write(head[: len(head) // 2] if reply.stall == -2 else head)
        end = next((count for count in (reply.cut, reply.stall) if count is not None), len(reply.body))
        if method != "HEAD" and end > 0:
            writer.write(reply.body[:end])
        await writer.drain()
        if reply.stall is not None:
            await asyncio.Event().wait()
        if reply.cut is not None:
            writer.transport.close()  # in order, so that what was sent arrives; it is too short all the same
            return False
        return bool(headers["Content-Length"])
