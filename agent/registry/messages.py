"""What the client and its transport say to each other. Apart from `transport`, which takes long to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent import timeouts
from agent.errdefs import Unavailable

CHUNK = 1 << 20
"""Bytes of a body that are read at a time, at most."""


class RegistryUnavailable(Unavailable):
    """A registry, or the way to it, is out of order."""


class NotTLS(RegistryUnavailable):
    """A host that was asked over TLS speaks something else, plain http most likely."""


class Transient(RegistryUnavailable):
    """Trying again can help. `retry_after`: how many seconds the server wants to be left alone; 0 if it didn't say."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(Transient):
    """There is no connection to the host."""


@dataclass(frozen=True)
class Request:
    """What to ask for. `private` are headers for the first host alone: Authorization, and what an operator has set for it."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    dial_timeout: float = timeouts.REGISTRY_DIAL
    verified: bool = False
    """The content will be checked by its digest, so that it may come over plain http in the end."""
