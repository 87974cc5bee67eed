"""Where images of a registry come from: `certs.d/<host>/hosts.toml`, as containerd reads it, with its every key.

    server = "https://registry-1.docker.io"          # asked last; without it, the host that the directory is named after
    [host."https://mirror.internal:5000"]            # asked in the order of the file
      capabilities = ["pull", "resolve"]             # a host without "resolve" isn't asked what a tag means
      ca = "ca.pem"                                  # or several; paths are relative to the directory
      client = [["client.cert", "client.key"]]       # or "both.pem", or several
      skip_verify = false                            # this, ca or client for an http:// host: TLS first, then plain http
      override_path = false                          # true: the URL's path is the API's root, without /v2
      dial_timeout = "5s"
      [host."https://mirror.internal:5000".header]
        x-tenant = ["a", "b"]

All but `server` and `host` may also stand at the top, for the server. The directory of host "quay.io:5000" is `quay.io_5000_` or
`quay.io:5000`, and that of every host without one `_default`. A directory without the file has certificates named as Docker names
them (*.crt, *.cert, *.key). Files are read at each pull, so a change needs no restart. Where containerd falls back to defaults when a file
is wrong, this refuses: whoever wrote a CA or a mirror into it wants it used.
Source: containerd docs/hosts.md. Called by `agent.registry.client`; blocks.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent import timeouts
from agent.errdefs import InvalidArgument
from agent.registry.names import api_host, is_loopback, split_port

FILE = "hosts.toml"
PULL, RESOLVE = "pull", "resolve"
_CAPABILITIES = frozenset({PULL, RESOLVE, "push", "referrers"})
_KEYS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
_TLS_KEYS = frozenset({"ca", "client", "skip_verify"})
_DEFAULT = "_default"
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Certificate:
    """A client's certificate and key, which may be in one file. `named` is where an operator finds the setting."""

    certificate: Path
    key: Path | None
    named: str


@dataclass(frozen=True)
class Authority:
    """A file of CA certificates that are trusted besides the system's."""

    path: Path
    named: str


@dataclass(frozen=True)
class Host:
    """One host that can be asked about a repository."""

    scheme: str
    authority: str
    """Host and port, as in a URL."""
    path: str = "/v2"
    """Root of the API; no slash at its end."""
    namespace: str = ""
    """The registry whose images it mirrors, told to it as the query parameter `ns`; empty: its own."""
    capabilities: frozenset[str] = _CAPABILITIES
    authorities: tuple[Authority, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """May hold secrets."""
    dial_timeout: float = timeouts.REGISTRY_DIAL
    plain_too: bool = False
    """It is written http://, and yet has settings for TLS: asked over TLS, and over plain http if it doesn't speak that."""

    @property
    def secure(self) -> bool:
        return self.scheme == "https" and not self.plain_too

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def find_hosts(directory: Path, domain: str) -> tuple[Host, ...]:
    """The hosts for images of `domain`, in the order in which they are asked.

    Raises:
        InvalidArgument: a file is there and can't be used; names it and the key.
    """
    for name in _directory_names(domain):
        if (folder := directory / name).is_dir():
            return _read(folder, domain)
    return (_Table(directory, {}).server(domain),)


def _directory_names(domain: str) -> list[str]:
    host, port = split_port(domain)
    return [*([f"{host}_{port}_"] if port else []), domain, _DEFAULT]


def _read(folder: Path, domain: str) -> tuple[Host, ...]:
    file = folder / FILE
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (_Table(folder, _docker_certificates(folder)).server(domain),)
    except OSError as error:
        raise InvalidArgument(f"{file}: it can't be read: {error.strerror}") from error
    except ValueError as error:  # a TOMLDecodeError or a UnicodeDecodeError
        raise InvalidArgument(f"{file}: it is not TOML: {error}") from error
    server, mirrors = content.pop("server", ""), content.pop("host", {})
    top = _Table(folder, content)
    if not isinstance(server, str):
        raise top.refused("server", "it is not a string")
    if not isinstance(mirrors, dict) or not all(isinstance(mirror, dict) for mirror in mirrors.values()):
        raise top.refused("host", 'it does not consist of tables [host."URL"]')
    hosts = [_Table(folder, mirror, f'host."{_without_secrets(url)}"').at(url, domain) for url, mirror in mirrors.items()]
    return (*hosts, _Table(folder, content, "server").at(server, domain) if server else top.server(domain))


def _docker_certificates(folder: Path) -> dict[str, Any]:
    """https://docs.docker.com/reference/cli/dockerd/#insecure-registries: *.crt are authorities, *.cert and *.key a client's."""
    names = sorted(entry.name for entry in folder.iterdir())
    authorities = [name for name in names if name.endswith(".crt")]
    pairs = [[name, f"{name.removesuffix('.cert')}.key"] for name in names if name.endswith(".cert")]
    clients = [[certificate, key if key in names else ""] for certificate, key in pairs]
    return {key: value for key, value in (("ca", authorities), ("client", clients)) if value}


def _without_secrets(url: str) -> str:
    return re.sub("//[^/]*@", "//...@", url)


class _Table:
    """The keys of one host: those at the top of the file are the server's, the others stand below [host."URL"]."""

    def __init__(self, folder: Path, content: Mapping[str, Any], name: str = "") -> None:
        self._folder = folder
        self._content = content
        self._name = name
        self._prefix = f"{name}." if name and name != "server" else ""
        for key in content:
            if key not in _KEYS:
                raise self.refused(key, f"there is no such key; there are {', '.join(_KEYS)}")

    def server(self, domain: str) -> Host:
        """The registry itself: where images of `domain` come from if nothing else is said."""
        authority = api_host(domain)
        host, port = split_port(authority)
        return self._host("https" if port == "443" or not is_loopback(host) else "http", authority, "/v2", "")

    def at(self, url: str, domain: str) -> Host:
        """The host at `url`."""
        text = url if "://" in url else f"https://{url}"
        try:
            parts = urlsplit(text)
            _ = parts.port  # raises if it is no number
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or not text.isascii():
            raise self._wrong(f"{_without_secrets(url)!r} is not a URL of the form http(s)://HOST[:PORT][/PATH]")
        if parts.username is not None:
            raise self._wrong("credentials don't belong in a URL; a pull brings its own")
        path = re.sub("/+", "/", parts.path).rstrip("/")
        if not self._flag("override_path") and not path.endswith("/v2"):
            path += "/v2"
        authority = api_host(parts.netloc)
        return self._host(parts.scheme, authority, path, "" if authority == api_host(domain) else domain)

    def _host(self, scheme: str, authority: str, path: str, namespace: str) -> Host:
        # Port 80 leaves no doubt.
        plain_too = scheme == "http" and not _TLS_KEYS.isdisjoint(self._content) and split_port(authority)[1] != "80"
        return Host(
            "https" if plain_too else scheme,
            authority,
            path,
            namespace,
            capabilities=self._capabilities(),
            authorities=tuple(Authority(self._folder / name, self._named("ca")) for name in self._texts("ca")),
            certificates=self._certificates(),
            skip_verify=self._flag("skip_verify"),
            headers=self._headers(),
            dial_timeout=self._dial_timeout(),
            plain_too=plain_too,
        )

    def _flag(self, key: str) -> bool:
        value = self._content.get(key, False)
        if not isinstance(value, bool):
            raise self.refused(key, "it is not true or false")
        return value

    def _texts(self, key: str) -> tuple[str, ...]:
        texts = _as_list(self._content.get(key, []))
        if texts is None or not all(isinstance(text, str) for text in texts):
            raise self.refused(key, "it is neither a string nor an array of strings")
        return tuple(texts)

    def _capabilities(self) -> frozenset[str]:
        given = frozenset(text.lower() for text in self._texts("capabilities"))
        if unknown := sorted(given - _CAPABILITIES):
            raise self.refused("capabilities", f"there is no capability {unknown[0]!r}")
        return given or _CAPABILITIES

    def _certificates(self) -> tuple[Certificate, ...]:
        entries = _as_list(self._content.get("client", []))
        pairs = [[entry, ""] if isinstance(entry, str) else entry for entry in entries or []]
        if entries is None or not all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in pairs):
            raise self.refused("client", "it is neither a path nor an array of paths or of pairs [certificate, key]")
        return tuple(
            Certificate(self._folder / certificate, self._folder / key if key else None, self._named("client"))
            for certificate, key in pairs
        )

    def _headers(self) -> tuple[tuple[str, str], ...]:
        table = self._content.get("header", {})
        if not isinstance(table, dict):
            raise self.refused("header", "it is not a table")
        headers = [(name, text) for name, value in table.items() for text in (_as_list(value) or [None])]
        for name, text in headers:
            if not _HEADER_NAME.fullmatch(name):
                raise InvalidArgument(f"{self._named('header')}: {name[:100]!r} can't be the name of a header")
            if not isinstance(text, str) or not text.isascii() or not text.isprintable():  # not shown: it may be a secret
                raise InvalidArgument(f"{self._named(f'header.{name}')}: it is neither a line of ASCII text nor an array of such")
        return tuple(headers)

    def _dial_timeout(self) -> float:
        value = self._content.get("dial_timeout", "")
        parts = _DURATION.findall(value) if isinstance(value, str) else []
        if "".join(number + unit for number, unit in parts) != value:
            raise self.refused("dial_timeout", "it is not a duration such as '5s', '500ms' or '1m30s'")
        return sum(float(number) * _UNITS[unit] for number, unit in parts) or timeouts.REGISTRY_DIAL

    def _named(self, key: str) -> str:
        return f"{self._folder / FILE}: {self._prefix}{key}"

    def _wrong(self, reason: str) -> InvalidArgument:
        """The error for the URL that is the table's own name."""
        return InvalidArgument(f"{self._folder / FILE}: {self._name}: {reason}")

    def refused(self, key: str, reason: str) -> InvalidArgument:
        value = f" = {self._content[key]!r}"[:200] if key in self._content else ""
        return InvalidArgument(f"{self._named(key)}{value}: {reason}")


def _as_list(value: Any) -> list[Any] | None:
    """A string counts as a list of one; None for what is neither."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else None
