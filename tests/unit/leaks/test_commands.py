"""Processes by their command lines."""

from __future__ import annotations

import pytest

from agent.leaks.commands import MonitorCommand, ShimCommand, is_daemon, monitor, shim

SHIM = "/usr/bin/containerd-shim-runc-v2"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((SHIM, "-namespace", "k8s.io", "-id", "a", "-address", "/s"), ShimCommand("containerd-shim-runc-v2", "a", "/s", "", "k8s.io")),
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
        ("/usr/bin/conmon -b /run/x -c abc --exit-dir /e -n k8s_POD_web -r /usr/bin/runc", MonitorCommand("abc", False)),
        ("/usr/bin/conmon --api-version 1 -c abc --exit-command /usr/bin/podman", MonitorCommand("abc", True)),
        ("conmon", MonitorCommand("", False)),
        ("/usr/bin/conmonrs -c abc", None),
        ("", None),
    ],
)
def test_monitors(command: str, expected: MonitorCommand | None) -> None:
    assert monitor(command.split()) == expected


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
