from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import tenacity

from agent.registry import Credentials, RegistryClient, Repository
from tests.unit.registry.fake import FakeRegistry

ANONYMOUS = Credentials()


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
