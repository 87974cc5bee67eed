"""Processes known by their command lines. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

_SHIM = "containerd-shim-"
_HELPERS = ("start", "delete")
_MONITOR = "conmon"


@dataclass(frozen=True)
class ShimCommand:
    """A shim that serves, or one of its short-lived helpers (runtime-v2 section 2)."""

    binary: str
    id: str
    """The sandbox or container that it was started for."""
    address: str
    """Of the runtime that started it."""
    action: str
    """`start` or `delete` of a helper; empty for the one that serves."""
    namespace: str = ""
    """Containerd's: "k8s.io" for pods of a kubelet, "moby" for Docker's containers."""


def shim(arguments: Sequence[str]) -> ShimCommand | None:
    """The shim that a command line is, whoever's; None: it is none."""
    if not arguments or not (binary := posixpath.basename(arguments[0])).startswith(_SHIM):
        return None
    flags = _flags(arguments[1:])
    action = arguments[-1] if arguments[-1] in _HELPERS else ""
    return ShimCommand(binary, flags.get("id", ""), flags.get("address", ""), action, flags.get("namespace", ""))


@dataclass(frozen=True)
class MonitorCommand:
    """A `conmon`, the process beside each container of CRI-O and of Podman."""

    container: str
    podman: bool


def monitor(arguments: Sequence[str]) -> MonitorCommand | None:
    """The `conmon` that a command line is; None: it is none."""
    if not arguments or posixpath.basename(arguments[0]) != _MONITOR:
        return None
    flags = _flags(arguments[1:])
    return MonitorCommand(flags.get("c", flags.get("cid", "")), any("podman" in argument for argument in arguments))


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """As Go's package `flag` reads them: one dash or two, the value behind `=` or as the next argument."""
    found: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        found.setdefault(name, value)
    return found


def is_daemon(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of an `orlop serve`, ours or another one."""
    if "serve" not in arguments:
        return False
    program, *rest = arguments
    if posixpath.basename(program).startswith("python"):
        return "agent.cli.main" in rest or (bool(rest) and posixpath.basename(rest[0]) == "orlop")
    return posixpath.basename(program) == "orlop"
