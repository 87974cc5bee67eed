"""Processes by their command lines."""

from __future__ import annotations

import pytest

from agent.leaks.commands import ShimCommand, is_daemon, shim

SHIM = "/usr/bin/containerd-shim-runc-v2"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((SHIM, "-namespace", "k8s.io", "-id", "a", "-address", "/s"), ShimCommand("containerd-shim-runc-v2", "a", "/s", "")),
        ((SHIM, "--id=a", "--address", "/s", "-debug", "start"), ShimCommand("containerd-shim-runc-v2", "a", "/s", "start")),
        (("containerd-shim-kata-v2", "-address", "/s", "-id", "a", "delete"), ShimCommand("containerd-shim-kata-v2", "a", "/s", "delete")),
        ((SHIM, "-id"), ShimCommand("containerd-shim-runc-v2", "", "", "")),
        ((SHIM,), ShimCommand("containerd-shim-runc-v2", "", "", "")),
        (("/usr/bin/containerd", "-id", "a"), None),
        ((), None),
    ],
)
def test_shims(arguments: tuple[str, ...], expected: ShimCommand | None) -> None:
    assert shim(arguments) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/usr/bin/orlop serve --config /etc/x", True),
        ("/opt/venv/bin/python3 /opt/venv/bin/orlop serve", True),
        ("python3.11 -m agent.cli.main serve", True),
        ("/usr/bin/orlop audit", False),
        ("sudo orlop serve", False),
        ("python3 -m agent.logs.copier --socket s", False),
        ("", False),
    ],
)
def test_daemons(command: str, expected: bool) -> None:
    assert is_daemon(command.split()) is expected
