"""In what the shims of the simulated node differ: four generations of runc's, Kata's and gVisor's (runtime-v2 2)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from agent.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams, BootstrapResult
from agent.linux.processes import Command
from agent.runtime.v2.bootstrap import Bootstrap


@dataclass(frozen=True)
class Generation:
    """In what shims differ."""

    name: str
    prints: Literal["plain", "json", "protobuf"]
    version: int
    stdin: Literal["legacy", "tolerant", "params"]
    """What it takes; the strict ones refuse the other form."""
    delete_without_runtime: int
    """The exit status of `delete` where Create never came so far."""
    groups: bool = True
    kind: Literal["runc", "kata", "gvisor"] = "runc"
    one_lock: bool = True
    """State waits behind a Create that runs (up to 2.3)."""
    shutdown_kills_create: bool = False

    @property
    def binary(self) -> str:
        return f"containerd-shim-{self.kind}-{self.name}"


GENERATIONS = (
    Generation("1.6", "plain", 2, "legacy", 1),
    Generation("1.7", "plain", 2, "tolerant", 1),
    Generation("2.1", "json", 3, "tolerant", 0),
    Generation("main", "protobuf", 3, "params", 0, one_lock=False, shutdown_kills_create=True),
    Generation("kata", "plain", 2, "tolerant", 1, kind="kata"),
    Generation("gvisor", "plain", 2, "tolerant", 1, groups=False, kind="gvisor"),
)


def refused(generation: Generation, command: Command) -> bytes:
    """Why what is on stdin is refused; empty: it is not."""
    name = command.argv[command.argv.index("-id") + 1]
    is_params = False
    with suppress(Exception):
        is_params = BootstrapParams.FromString(command.stdin).instance_id == name
    if generation.stdin == "params" and not is_params:
        return b"shim is started through the deprecated API"
    if generation.stdin == "legacy" and is_params:
        return f"type with url {name}: not found".encode()
    return b""


def printed(generation: Generation, address: str) -> bytes:
    if generation.prints == "plain":
        return address.encode()
    if generation.prints == "json":
        return Bootstrap(generation.version, address, "ttrpc").to_json().encode()
    return BootstrapResult(version=generation.version, address=address, protocol="ttrpc").SerializeToString()
