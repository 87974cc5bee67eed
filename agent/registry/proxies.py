"""Which proxy leads to a host: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Go reads them, since nodes are set up for programs in Go.

The standard library knows neither networks ("10.0.0.0/8") nor addresses in NO_PROXY, and those are what a node has there.
Source: https://pkg.go.dev/golang.org/x/net/http/httpproxy. Called by `agent.registry.client`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from agent.errdefs import InvalidArgument
from agent.registry.names import is_loopback, split_port

_PORTS = {"http": "80", "https": "443"}


class Proxies:
    """The proxies of an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Raises:
            InvalidArgument: a proxy's URL is none.
        """

        def value(name: str) -> tuple[str, str]:
            return next(((key, environment[key].strip()) for key in (name, name.lower()) if environment.get(key, "").strip()), (name, ""))

        self._proxies = {scheme: _checked(*value(f"{scheme.upper()}_PROXY")) for scheme in _PORTS}
        self._exceptions = [entry.strip().lower() for entry in value("NO_PROXY")[1].split(",") if entry.strip()]

    def proxy_for(self, scheme: str, authority: str) -> str | None:
        """The URL of the proxy for `scheme://authority`, its user and password included; None: go straight there."""
        proxy = self._proxies[scheme]
        host, port = split_port(authority.lower())
        if not proxy or is_loopback(host):
            return None
        port = port or _PORTS[scheme]
        return None if any(_matches(entry, host.strip("[]"), port) for entry in self._exceptions) else proxy


def _checked(name: str, url: str) -> str:
    if not url:
        return ""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:  # not shown: it may hold a password
        raise InvalidArgument(f"the environment's {name} is not the URL of an HTTP proxy")
    return text


def _matches(entry: str, host: str, port: str) -> bool:
    """Whether an entry of NO_PROXY means a host: "*", an address, a network, a domain with all below it, ".domain" without itself."""
    if entry == "*":
        return True
    address = _address(host)
    with suppress(ValueError):
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        return address is not None and address in network
    name, only = split_port(entry)
    if only and only != port:
        return False
    if (exception := _address(name.strip("[]"))) is not None:
        return exception == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
