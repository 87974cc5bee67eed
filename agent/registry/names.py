"""Names of registry hosts."""

from __future__ import annotations

import ipaddress

_DOCKER_HUB = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "www.docker.io"})


def api_host(host: str) -> str:
    """The host to talk to about images of `host`: docker.io, of all names, serves no registry."""
    return _DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


def is_loopback(host: str) -> bool:
    """Whether `host`, without a port, is this machine, so that what is sent there is not seen on the way."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_port(host: str) -> tuple[str, str]:
    """Host and port ("" for none) of "host:5000", "[::1]:5000", "host"."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdecimal() else (host, "")
