"""HTTP for the registry client: requests with budgets, redirects that carry no secrets, and errors as sentences.

`agent.registry.client` makes one `Transport` per pull. No other module knows the HTTP library, and nothing imports this one before the
first pull: it takes a fifth of a second, which the daemon's start would pay. Its own redirects, proxies from the
environment, netrc, cookies and decompression are off: they would send credentials where nobody meant them to go, or change bytes
whose digest counts.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from agent import timeouts
from agent.errdefs import FailedPrecondition, InvalidArgument, Unknown
from agent.linux.throwaway import in_own_thread
from agent.registry.messages import CHUNK, NotTLS, RegistryUnavailable, Request, Transient, Unreachable
from agent.registry.proxies import Proxies

MAX_REDIRECTS = 10
_MAX_HEADER = 1 << 15
"""Bytes of a header; signed URLs of object stores are long."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})
"""OpenSSL's reasons for an answer to a TLS greeting that is none."""
_HEADERS = {"User-Agent": f"orlop/{version('orlop')}", "Accept-Encoding": "identity"}


class Answer:
    """A response whose body is still to come."""

    def __init__(self, response: aiohttp.ClientResponse, *, redirected: bool) -> None:
        self._response = response
        self.status = response.status
        self.host = str(response.url.origin())
        self.redirected = redirected
        """By another host than the one that was asked, or sent on by such a one."""

    def header(self, name: str) -> str:
        """The header's first value; empty without one."""
        return self._response.headers.get(name, "")

    def all_headers(self, name: str) -> list[str]:
        return self._response.headers.getall(name, [])

    @property
    def length(self) -> int | None:
        """Content-Length; None if it isn't told."""
        return self._response.content_length

    async def read(self, limit: int) -> bytes:
        """The whole body, a small document.

        Raises:
            InvalidArgument: it has more than `limit` bytes; the rest is not read.
            Transient: the connection broke, or not all has come within `timeouts.PULL_SILENCE`, be it in drops.
        """
        data = bytearray()
        if (self.length or 0) <= limit:
            with _told(self.host):
                async with asyncio.timeout(timeouts.PULL_SILENCE):
                    while len(data) <= limit:
                        if not (chunk := await self.read_some()):
                            return bytes(data)
                        data += chunk
        raise InvalidArgument(f"{self.host} sends a document of more than {limit} bytes; it is not read")

    async def read_some(self) -> bytes:
        """What has come of the body, `CHUNK` bytes at most; waits for the first one. Empty at its end. Raises Transient."""
        with _told(self.host):
            return await self._response.content.read(CHUNK)


class _Resolver(AbstractResolver):
    """Looks names up in threads of their own. The C library waits for a dead name server for minutes, whoever has given up meanwhile;
    in the daemon's common threads some pulls would come to hold up all else."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await in_own_thread(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST)
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """There is nothing to close."""


class Transport:
    """HTTP for one pull. `async with` it."""

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=_Resolver()),  # the pull has its own limits, and a proxy is one host
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=CHUNK,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
            headers=_HEADERS,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def send(self, request: Request, tls: ssl.SSLContext) -> AsyncIterator[Answer]:
        """The answer to a request, whatever its status, after redirects of GET and HEAD. The body can be read inside.

        Raises:
            Transient: no connection, or no answer within `timeouts.REGISTRY_ANSWER`; also when the body breaks off.
            RegistryUnavailable: TLS, or the proxy, refuses.
            FailedPrecondition: the certificate is not trusted.
            Unknown: the peer doesn't speak HTTP, or redirects in circles or to where nobody should go.
        """
        url = _url(request.url)
        origin = url.origin()
        away = False
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._request(request, url, () if away else request.private, tls)
            try:
                if response.status not in _REDIRECTS or request.body:
                    yield Answer(response, redirected=away)
                    return
                target = _redirect(url, response.headers.get("Location", ""))
            finally:
                response.release()
            # For good: another host must not send our secrets to a place of its choice (Go's CVE-2024-45336).
            away = away or target.origin() != origin
            if url.scheme == "https" and target.scheme == "http" and not request.verified:
                raise Unknown(f"{url.origin()} redirects to {target.origin()}, where anybody could change what it says")
            url = target
        raise Unknown(f"{origin} redirects more than {MAX_REDIRECTS} times, at last to {url.origin()}")

    async def _request(self, request: Request, url: URL, private: Sequence[tuple[str, str]], tls: ssl.SSLContext) -> aiohttp.ClientResponse:
        proxy, proxy_headers = self._proxy(url)
        host = str(url.origin()) + (f" (by the proxy {proxy.origin()})" if proxy is not None else "")
        with _told(host):
            # aiohttp counts the look-up of the name, the connection and the TLS handshake as `connect`.
            timeout = aiohttp.ClientTimeout(total=None, connect=request.dial_timeout, sock_read=timeouts.PULL_SILENCE)
            async with asyncio.timeout(request.dial_timeout + timeouts.REGISTRY_ANSWER):
                return await self._session.request(
                    request.method,
                    url,
                    headers=[*request.headers.items(), *private, *(proxy_headers.items() if url.scheme == "http" else ())],
                    data=request.body or None,
                    allow_redirects=False,
                    ssl=tls,
                    proxy=proxy,
                    proxy_headers=proxy_headers,
                    timeout=timeout,
                )

    def _proxy(self, url: URL) -> tuple[URL | None, dict[str, str]]:
        found = self._proxies.proxy_for(url.scheme, url.raw_authority)
        if found is None:
            return None, {}
        proxy = URL(found)
        if proxy.raw_user is None:
            return proxy, {}
        pair = f"{unquote(proxy.raw_user)}:{unquote(proxy.raw_password or '')}"
        return proxy.with_user(None), {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _url(text: str) -> URL:
    """A URL that is sent as it was written: another spelling of a signed URL is another URL."""
    try:
        url = URL(text, encoded=True)
        if url.scheme not in ("http", "https") or not url.raw_host or not text.isascii() or not text.isprintable():
            raise ValueError("not a URL for HTTP")
    except ValueError as error:
        raise Unknown(f"{text.partition('?')[0][:200]!r} can't be asked for: {error}") from None
    return url.with_fragment(None)


def _redirect(url: URL, location: str) -> URL:
    try:
        target = urljoin(str(url), location)
        usable = bool(location) and urlsplit(target).username is None
    except ValueError:
        usable = False
    if not usable:
        raise Unknown(f"{url.origin()} redirects to no URL that can be followed")
    return _url(target)


@contextmanager
def _told(host: str) -> Iterator[None]:
    """What the HTTP library raises, as sentences. Its own texts may have URLs with signatures or passwords in them."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise FailedPrecondition(f"{host}: its certificate is not trusted: {_reason(error.certificate_error)}") from None
    except aiohttp.ClientSSLError as error:
        kind = NotTLS if getattr(error.os_error, "reason", "") in _NOT_TLS else RegistryUnavailable
        raise kind(f"{host}: TLS fails: {_reason(error.os_error)}") from None
    except aiohttp.ClientHttpProxyError as error:
        raise RegistryUnavailable(f"{host}: the proxy refuses with {error.status}") from None
    except aiohttp.ClientConnectorError as error:
        raise Unreachable(f"{host} can't be reached: {_reason(error.os_error)}") from None
    except aiohttp.ConnectionTimeoutError:
        raise Unreachable(f"{host} can't be reached: there is no connection within its dial_timeout") from None
    except aiohttp.SocketTimeoutError:
        raise Transient(f"{host} has sent nothing for {timeouts.PULL_SILENCE:g} s") from None
    except TimeoutError:
        raise Transient(f"{host} does not answer in time") from None
    except aiohttp.ClientResponseError:
        raise Unknown(f"{host} answers something that is not HTTP") from None
    except (aiohttp.ClientError, OSError) as error:
        reason = _reason(error) if isinstance(error, OSError) else "it was closed in the middle of an answer"
        raise Transient(f"{host}: the connection broke: {reason}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:200] or type(error).__name__
