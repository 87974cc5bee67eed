from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import tenacity

from agent.content import digest_of
from agent.errdefs import DataLoss
from agent.registry import Credentials, RegistryClient, Repository
from tests.images import digest
from tests.unit.registry.fake import MANIFEST, FakeRegistry

ANONYMOUS = Credentials()
PASSWORD = Credentials(username="me", password="s3cret")
LIMIT = 4 << 20
DATA = bytes(range(256)) * 20_000
DOCUMENT = b'{"schemaVersion": 2}'


async def gather(stream: AsyncIterator[bytes]) -> bytes:
    """What the content store does: take the bytes, and believe the digest alone."""
    data = b"".join([chunk async for chunk in stream])
    if digest_of(data) != digest(DATA):
        raise DataLoss(f"the digest is {digest_of(data)}")
    return data


async def fetch(repository: Repository) -> bytes:
    return await repository.fetch(digest(DATA), len(DATA), gather)


class Client:
    """A registry client whose pauses take no time: `pauses` tells how long they would have been."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        self.pauses: list[float] = []

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def open(
        self, registry: FakeRegistry | str, repository: str = "app", credentials: Credentials = ANONYMOUS
    ) -> AbstractAsyncContextManager[Repository]:
        """The repository of a registry, or of a domain that hosts.toml knows."""
        client = RegistryClient(self.directory, self.environment, sleep=self._sleep, wait=tenacity.wait_fixed(1))
        return client.repository(registry if isinstance(registry, str) else registry.domain, repository, credentials)

    def hosts(self, text: str, domain: str = "reg.test") -> None:
        """Write a hosts.toml."""
        (self.directory / domain).mkdir(parents=True, exist_ok=True)
        (self.directory / domain / "hosts.toml").write_text(text)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "certs.d")


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def mirror() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def filled(registry: FakeRegistry) -> None:
    """`registry` has the image app:1, if it can be called one, and DATA."""
    fill(registry)


def fill(registry: FakeRegistry) -> None:
    registry.add_manifest("app", DOCUMENT, MANIFEST, "1")
    registry.blobs[digest(DATA)] = DATA
