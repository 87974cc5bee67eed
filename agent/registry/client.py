"""Manifests and blobs of one repository, from the first host that delivers what it should.

`agent.images.pull` opens a `Repository` for each pull: its connections, its tokens and what it learned of dead hosts end with it.
Hosts are asked in the order of `hosts.find_hosts`. One that fails, or sends other bytes than the digest says, is passed over for the
next; only the last is asked again and again. A download that breaks off goes on where it was.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import tenacity

from agent import log, timeouts
from agent.aio import in_thread
from agent.content.digest import digest_of, validate_digest
from agent.errdefs import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unknown,
)
from agent.registry.answers import check_status, media_type, skipped_bytes
from agent.registry.auth import Authorizer, Challenge, Credentials, TokenRequest, parse_challenges
from agent.registry.hosts import PULL, RESOLVE, Host, find_hosts
from agent.registry.messages import CHUNK, NotTLS, RegistryUnavailable, Request, Transient, Unreachable
from agent.registry.proxies import Proxies
from agent.registry.tls import default_context, tls_context

if TYPE_CHECKING:
    from agent.registry.transport import Answer, Transport

_log = log.get("registry")
T = TypeVar("T")

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
DEFAULT_WAIT = tenacity.wait_exponential_jitter(multiplier=0.5, max=30, jitter=0.5)
"""Between two attempts at one request."""
_RETRIES = 4
"""Of the last host; the others get one, and none if there is no connection: each would cost a dial_timeout."""
_MAX_RETRY_AFTER = 60.0
"""Seconds that a server may ask us to wait; if it wants more, the pull fails, and the kubelet comes back by its own clock."""
_MAX_TOKEN = 1 << 20
"""Bytes of a token server's answer."""
_MAX_CHALLENGES = 2
"""Answers to a 401 for one request: a token, and another one if the first has run out."""
_MIN_SECRET = 6
"""Characters of a header's value that may be a secret; "1" and "true" are none."""
_PEER_FAULTS = (Unavailable, NotFound, PermissionDenied, DataLoss, Unknown, FailedPrecondition, InvalidArgument)
"""What another host may do better; a full disk isn't among it."""


class Document(NamedTuple):
    """A manifest or an index, with the type that the host gave it (without parameters)."""

    data: bytes
    media_type: str


class RegistryClient:
    """Opens repositories. One for the daemon; it holds no connections and no secrets."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        wait: tenacity.wait.wait_base = DEFAULT_WAIT,
    ) -> None:
        """`directory` is a certs.d; `environment` has the proxies. Raises InvalidArgument for a proxy that is no URL."""
        self._directory = directory
        self._proxies = Proxies(environment)
        self._sleep = sleep
        self._wait = wait

    @asynccontextmanager
    async def repository(self, domain: str, path: str, credentials: Credentials) -> AsyncIterator[Repository]:
        """The repository "domain/path" as somebody with these credentials sees it.

        Raises:
            InvalidArgument: the hosts.toml of `domain`, or a certificate that it names, can't be used.
        """
        endpoints, elsewhere, transport = await in_thread(self._prepared, domain, path, credentials)
        async with transport:
            yield Repository(f"{domain}/{path}", endpoints, elsewhere, transport, self._pause)

    def _prepared(self, domain: str, path: str, credentials: Credentials) -> tuple[list[_Endpoint], ssl.SSLContext, Transport]:
        from agent.registry.transport import Transport  # slow; see there

        endpoints = [_Endpoint(host, path, credentials) for host in find_hosts(self._directory, domain)]
        return endpoints, default_context(), Transport(self._proxies)

    async def _pause(self, failures: int, error: Transient) -> None:
        """Before the next attempt. Raises `error` if the server wants to be left alone for longer than anybody waits."""
        if error.retry_after > _MAX_RETRY_AFTER:
            raise error
        state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        state.attempt_number = failures
        await self._sleep(max(self._wait(state), error.retry_after))


class _Endpoint:
    """A host, how to talk to it, and what was learned of it in this pull. Making one reads certificates, which blocks."""

    def __init__(self, host: Host, repository: str, credentials: Credentials) -> None:
        self.host = host
        self.tls = tls_context(host)
        self.authorizer = Authorizer(host.authority, repository, credentials, secure=host.secure)
        self.authorizing = asyncio.Lock()
        self.failed = False
        """Could not be reached, or was out of order: it is asked last from then on."""
        self._repository = repository

    def url(self, path: str) -> str:
        return f"{self.host}{self.host.path}/{self._repository}/{path}" + (f"?ns={self.host.namespace}" if self.host.namespace else "")

    def headers(self, authorization: str, url: str) -> list[tuple[str, str]]:
        """The headers that `url` alone may see: the operator's, if it is of this host, and Authorization, which goes before theirs."""
        theirs = self.host.headers if url.startswith(f"{self.host}/") else ()
        if not authorization:
            return [*theirs]
        return [*(pair for pair in theirs if pair[0].lower() != "authorization"), ("Authorization", authorization)]

    def without_tls(self) -> bool:
        """Go on over plain http, if that is left to try."""
        if not self.host.plain_too:
            return False
        self.host = replace(self.host, scheme="http", plain_too=False)
        return True

    def hide(self, text: str) -> str:
        """What the host or its token server wrote, without the secrets that it was shown: some errors echo the request."""
        secrets = [*self.authorizer.secrets(), *(value for _, value in self.host.headers if len(value) >= _MIN_SECRET)]
        for secret in secrets:
            text = text.replace(secret, "[hidden]")
        return text


Pause = Callable[[int, Transient], Awaitable[None]]
Open: TypeAlias = "Callable[[int], AbstractAsyncContextManager[Answer]]"
"""The bytes of a blob from an offset on."""


class Repository:
    """See `RegistryClient.repository`. What its methods raise, beside what is said there, when no host does better:

    NotFound: there is no such thing. PermissionDenied: not for these credentials. DataLoss: other bytes than asked for.
    RegistryUnavailable: hosts can't be reached, or don't deliver. FailedPrecondition: a certificate isn't trusted, or
    hosts.toml lets nobody be asked. Unknown, InvalidArgument: a host does what no registry should.
    """

    def __init__(self, name: str, endpoints: Sequence[_Endpoint], elsewhere: ssl.SSLContext, transport: Transport, pause: Pause) -> None:
        self.name = name
        self._endpoints = endpoints
        self._elsewhere = elsewhere
        self._transport = transport
        self._pause = pause

    async def resolve(self, reference: str, limit: int) -> str:
        """The digest of the manifest or index, of `limit` bytes at most, that a tag means now. A digest: whether it can be had."""
        capability = PULL if _is_digest(reference) else RESOLVE
        return await self._from_any(capability, f"manifest {reference}", partial(self._resolve, reference, limit))

    async def manifest(self, digest: str, limit: int) -> Document:
        """A manifest or index, of `limit` bytes at most, verified."""
        return await self._from_any(PULL, f"manifest {digest}", partial(self._manifest, digest, limit))

    async def fetch(self, digest: str, size: int, store: Callable[[AsyncIterator[bytes]], Awaitable[T]], urls: Sequence[str] = ()) -> T:
        """Have `store` take a blob, and return what it returned.

        `store` verifies: a DataLoss from it speaks against the host, and it is called again with another one's bytes. `urls` are
        where else a non-distributable layer can be had; they see no credentials.
        """

        async def download(ask: Open, retries: int, hide: Callable[[str], str] = str) -> T:
            async with aclosing(self._download(ask, f"blob {digest}", size, retries, hide)) as stream:
                return await store(stream)

        async def from_endpoint(endpoint: _Endpoint, retries: int) -> T:
            def ask(offset: int) -> AbstractAsyncContextManager[Answer]:
                return self._ask(endpoint, "GET", f"blobs/{digest}", _range(offset), verified=True)

            return await download(ask, retries, endpoint.hide)

        async def from_url(url: str, retries: int) -> T:
            def ask(offset: int) -> AbstractAsyncContextManager[Answer]:
                return self._transport.send(Request("GET", url, _range(offset), verified=True), self._elsewhere)

            return await download(ask, retries)

        try:
            return await self._from_any(PULL, f"blob {digest}", from_endpoint)
        except _PEER_FAULTS as error:
            for url in urls:
                try:
                    return await from_url(url, _RETRIES)
                except _PEER_FAULTS as other:
                    error.add_note(f"elsewhere: {other}")
            raise

    # Hosts

    async def _from_any(self, capability: str, what: str, ask: Callable[[_Endpoint, int], Awaitable[T]]) -> T:
        endpoints = [endpoint for endpoint in self._endpoints if capability in endpoint.host.capabilities]
        if not endpoints:
            raise FailedPrecondition(f"{self.name}: its hosts.toml has no host with the capability {capability!r}")
        endpoints.sort(key=lambda endpoint: endpoint.failed)
        passed_over: list[str] = []
        for endpoint in endpoints:
            last = endpoint is endpoints[-1]
            try:
                return await ask(endpoint, _RETRIES if last else 1)
            except _PEER_FAULTS as error:
                endpoint.failed = endpoint.failed or isinstance(error, Unavailable | FailedPrecondition)
                if last:
                    for note in passed_over:
                        error.add_note(note)
                    raise
                _log.warning("passed over for the next host", image=self.name, what=what, host=str(endpoint.host), error=str(error))
                passed_over.append(f"before that: {error}")
        raise AssertionError("there is a last one")

    async def _retrying(self, retries: int, attempt: Callable[[], Awaitable[T]]) -> T:
        deadline = asyncio.get_running_loop().time() + timeouts.REGISTRY_RETRY
        for failures in range(1, retries + 1):
            try:
                return await attempt()
            except Transient as error:
                if asyncio.get_running_loop().time() > deadline or _has_next(error, retries):
                    raise
                await self._pause(failures, error)
        return await attempt()

    # Manifests

    async def _resolve(self, reference: str, limit: int, endpoint: _Endpoint, retries: int) -> str:
        path, what = f"manifests/{reference}", f"image {self.name}{'@' if _is_digest(reference) else ':'}{reference}"

        async def attempt() -> str:
            async with self._ask(endpoint, "HEAD", path, _ACCEPT) as answer:
                if answer.status not in (405, 501):
                    await check_status(answer, what, endpoint.hide)
                    media_type(answer, what)
                    if (answer.length or 0) > limit:
                        raise InvalidArgument(f"{answer.host}: the manifest of {what} has {answer.length} bytes, more than {limit}")
                    if digest := answer.header("Docker-Content-Digest"):
                        validate_digest(digest)
                        # By another algorithm it says nothing about the digest that was asked for.
                        return reference if _is_digest(reference) and _algorithm(digest) != _algorithm(reference) else digest
            async with self._ask(endpoint, "GET", path, _ACCEPT) as answer:
                await check_status(answer, what, endpoint.hide)
                media_type(answer, what)
                return digest_of(await answer.read(limit), reference if _is_digest(reference) else "")

        found = await self._retrying(retries, attempt)
        if _is_digest(reference) and found != reference:
            raise DataLoss(f"{endpoint.host} has under {what} what it says has the digest {found}")
        return found

    async def _manifest(self, digest: str, limit: int, endpoint: _Endpoint, retries: int) -> Document:
        async def attempt() -> Document:
            async with self._ask(endpoint, "GET", f"manifests/{digest}", _ACCEPT, verified=True) as answer:
                await check_status(answer, f"manifest {self.name}@{digest}", endpoint.hide)
                given = media_type(answer, f"manifest {self.name}@{digest}")
                data = await answer.read(limit)
                if (actual := digest_of(data, digest)) != digest:
                    raise DataLoss(f"{answer.host} sends as {self.name}@{digest} what has the digest {actual}")
                return Document(data, given)

        return await self._retrying(retries, attempt)

    # Blobs

    async def _download(self, ask: Open, what: str, size: int, retries: int, hide: Callable[[str], str]) -> AsyncGenerator[bytes, None]:
        """A blob's bytes, through as many connections as it takes."""
        offset = counted = failures = 0
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            try:
                async with ask(offset) as answer:
                    if answer.status == 416 and offset:
                        raise DataLoss(f"{answer.host}: {what} ends after {offset} of {size} bytes")
                    await check_status(answer, what, hide)
                    skip = skipped_bytes(answer, what, offset, size)
                    while chunk := await answer.read_some():
                        heard = loop.time()
                        if (new := chunk[skip:] if skip else chunk) and offset + len(new) > size:
                            raise DataLoss(f"{answer.host}: {what} has more than the {size} bytes that its manifest says")
                        skip = max(0, skip - len(chunk))
                        offset += len(new)
                        if new:
                            yield new
                    if offset == size:
                        return
                    raise Transient(f"{answer.host}: {what} breaks off after {offset} of {size} bytes")
            except Transient as error:
                # A host that sends a few bytes each time must not keep a pull going for ever.
                failures = 1 if offset - counted >= CHUNK else failures + 1
                counted = offset
                if loop.time() - heard > timeouts.PULL_PROGRESS:
                    raise RegistryUnavailable(f"{error}; no byte came for {timeouts.PULL_PROGRESS:g} s") from error
                if failures > retries or _has_next(error, retries):
                    raise
                _log.info("a download goes on", image=self.name, what=what, at=offset, of=size, error=str(error))
                await self._pause(failures, error)

    # Requests

    @asynccontextmanager
    async def _ask(
        self, endpoint: _Endpoint, method: str, path: str, headers: Mapping[str, str], *, verified: bool = False
    ) -> AsyncIterator[Answer]:
        """The answer of an endpoint, after what authorization it wants."""
        refusals = 0
        while refusals <= _MAX_CHALLENGES:
            authorization, url = endpoint.authorizer.header(), endpoint.url(path)
            private = endpoint.headers(authorization, url)
            request = Request(method, url, headers, private, dial_timeout=endpoint.host.dial_timeout, verified=verified)
            async with AsyncExitStack() as stack:
                try:
                    answer = await stack.enter_async_context(self._transport.send(request, endpoint.tls))
                except (NotTLS, Unreachable):
                    if endpoint.without_tls():
                        continue
                    raise
                if answer.status != 401 or answer.redirected:
                    yield answer
                    return
                challenges = parse_challenges(answer.all_headers("WWW-Authenticate"))
            await self._authorize(endpoint, authorization, challenges)
            refusals += 1
        raise PermissionDenied(f"{endpoint.host} takes none of the tokens that its token server gives for {self.name}")

    async def _authorize(self, endpoint: _Endpoint, refused: str, challenges: Sequence[Challenge]) -> None:
        async with endpoint.authorizing:
            if endpoint.authorizer.header() != refused:
                return  # another download of this pull has been through this meanwhile
            if (wanted := endpoint.authorizer.challenged(challenges)) is not None:
                endpoint.authorizer.granted(await self._token(endpoint, wanted))

    async def _token(self, endpoint: _Endpoint, wanted: TokenRequest) -> bytes:
        request = Request(
            "POST" if wanted.form else "GET",
            wanted.url,
            wanted.headers,
            endpoint.headers(wanted.authorization, wanted.url),
            body=wanted.form,
            dial_timeout=endpoint.host.dial_timeout,
        )
        async with self._transport.send(request, endpoint.tls) as answer:
            await check_status(answer, f"token for {self.name}", endpoint.hide)
            return await answer.read(_MAX_TOKEN)


def _has_next(error: Transient, retries: int) -> bool:
    """Whether there is no connection to a host that isn't the last."""
    return isinstance(error, Unreachable) and retries < _RETRIES


def _is_digest(reference: str) -> bool:
    return ":" in reference


def _algorithm(digest: str) -> str:
    return digest.partition(":")[0]


_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}


def _range(offset: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-"} if offset else {}
