"""What `SHIM start` prints: where the shim listens, and what it speaks. Parsed here, and kept in the bundle.

Three forms are in use (runtime-v2 section 2): a plain address (to containerd 1.7, gVisor, Kata), JSON (2.0 to 2.2), and a
serialised `BootstrapResult` (2.3 and later). `shim_binary` parses what was printed; `load` reads what was kept.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from agent.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapResult
from agent.errdefs import Internal, NotFound
from agent.linux import files

MAX_VERSION = 3
_LONGEST_SOCKET = 107
"""unix(7)."""
_ADDRESS_STARTS = (b"unix://", b"vsock://", b"hvsock://", b"/")
FILE = "bootstrap.json"
"""Its name in a bundle."""
_ADDRESS_FILE = "address"
_LONGEST = 4096
"""Bytes of either; a path has at most as many, and a socket's 108."""


@dataclass(frozen=True)
class Bootstrap:
    """How to reach a shim."""

    version: int
    """Of the task service, 2 or 3. That of the binary on disk, not always of the process that answers (runtime-v2 section 2)."""
    address: str
    protocol: str
    """`ttrpc` or `grpc`."""

    def validated(self) -> Bootstrap:
        """Itself.

        Raises:
            Internal: nothing that the agent can talk to.
        """
        if not 2 <= self.version <= MAX_VERSION:
            raise Internal(f"a shim that speaks version {self.version} of the task service; the agent speaks 2 to {MAX_VERSION}")
        if self.protocol not in ("ttrpc", "grpc"):
            raise Internal(f"a shim that speaks {self.protocol!r}; the agent speaks ttrpc and grpc")
        if not self.address:
            raise Internal("a shim that told no address")
        if len(os.fsencode(self.address.removeprefix("unix://"))) > _LONGEST_SOCKET:
            raise Internal(f"a shim that told an address longer than a socket's {_LONGEST_SOCKET} bytes: {self.address[:120]!r}")
        return self

    def to_json(self) -> str:
        """As containerd 2.x keeps it in `bootstrap.json`."""
        return json.dumps({"version": self.version, "address": self.address, "protocol": self.protocol})


def parse(stdout: bytes) -> Bootstrap:
    """What `start` printed on stdout (its stderr is another thing, and never part of it).

    Raises:
        Internal: empty, garbage, or a version or protocol that the agent doesn't speak.
    """
    text = stdout.strip()
    if not text:
        raise Internal("the shim printed nothing")
    if text.startswith(b"{"):
        return _from_json(text)
    if text.startswith(_ADDRESS_STARTS):
        return Bootstrap(2, _decode(text), "ttrpc").validated()
    try:
        result = BootstrapResult.FromString(stdout)
    except DecodeError as error:
        raise Internal(f"the shim printed something else than an address: {_shown(stdout)}") from error
    if not result.address:
        raise Internal(f"the shim printed something else than an address: {_shown(stdout)}")
    return Bootstrap(result.version, result.address, result.protocol.lower()).validated()


def read(bundle: Path) -> Bootstrap:
    """What a bundle says about its shim: `bootstrap.json`, else the plain `address` of older shims. Blocks.

    Raises:
        NotFound: the bundle has neither.
        Internal: neither says anything useful.
        OSError: it is no file of ours, but a link, say.
    """
    for name in (FILE, _ADDRESS_FILE):
        try:
            return parse(files.read_own(f"{bundle}/{name}", _LONGEST))
        except FileNotFoundError:
            continue
    raise NotFound(f"bundle {bundle} doesn't say where its shim listens")


def write(bundle: Path, bootstrap: Bootstrap) -> None:
    """Keep it in the bundle. Appears whole or not at all. Blocks."""
    temporary = bundle / f".{FILE}"
    temporary.write_text(bootstrap.to_json())
    os.replace(temporary, bundle / FILE)


def _from_json(text: bytes) -> Bootstrap:
    try:
        fields: Any = json.loads(text)
        version, address, protocol = fields["version"], fields["address"], fields["protocol"]
    except (ValueError, KeyError, RecursionError) as error:
        raise Internal(f"the shim printed JSON without version, address and protocol: {_shown(text)}") from error
    if not (isinstance(version, int) and isinstance(address, str) and isinstance(protocol, str)):
        raise Internal(f"the shim printed JSON with fields of other types: {_shown(text)}")
    return Bootstrap(version, address, protocol.lower()).validated()


def _decode(text: bytes) -> str:
    try:
        address = text.decode()
    except UnicodeDecodeError as error:
        raise Internal(f"the shim printed an address that is not UTF-8: {_shown(text)}") from error
    if any(character.isspace() or not character.isprintable() for character in address):
        raise Internal(f"the shim printed more than an address: {_shown(text)}")
    return address


def _shown(data: bytes) -> str:
    return repr(data[:120]) + (f" and {len(data) - 120} bytes more" if len(data) > 120 else "")
