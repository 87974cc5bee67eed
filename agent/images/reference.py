"""Image references: `busybox`, `registry.k8s.io/pause:3.10`, `quay.io/x/y@sha256:...`, and their one canonical form.

The grammar is that of https://github.com/distribution/reference, as users of `docker`, `ctr` and `crictl` know it: no domain
means docker.io, one path component there means `library/`, neither tag nor digest means `:latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.content.digest import validate_digest
from agent.errdefs import InvalidArgument

MAX_NAME = 255
"""Characters that domain and path may have together (distribution's limit)."""

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX_ID = re.compile(r"[a-f0-9]{64}")

_DEFAULT_DOMAIN = "docker.io"
_LEGACY_DOMAIN = "index.docker.io"


@dataclass(frozen=True)
class Reference:
    """A parsed reference in canonical form; at least one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Domain and path: "docker.io/library/busybox"."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str:
        """Name and tag, as CRI's `repo_tags` lists it; empty without a tag."""
        return f"{self.name}:{self.tag}" if self.tag else ""

    def with_digest(self, digest: str) -> str:
        """Name and digest, as CRI's `repo_digests` lists it."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """The canonical form of what a user or the kubelet wrote.

    Raises:
        InvalidArgument: it is not a reference; 64 hex digits are an image id, never a name.
    """
    rest, at, digest = text.partition("@")
    if at:
        validate_digest(digest)
    # A colon behind the last slash begins the tag; one before it is a port.
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        name, colon, tag = rest, "", ""
    domain, path = _split_domain(name)
    if _HEX_ID.fullmatch(name):
        raise InvalidArgument(f"image reference {_quoted(text)} is an image id; as a name it is not allowed")
    if not _DOMAIN.fullmatch(domain):
        raise InvalidArgument(f"image reference {_quoted(text)}: {_quoted(domain)} is not a registry")
    if not _PATH.fullmatch(path):
        hint = "; repository names are lower case" if _PATH.fullmatch(path.lower()) else ""
        raise InvalidArgument(f"image reference {_quoted(text)}: {_quoted(path)} is not a repository name{hint}")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidArgument(f"image reference {_quoted(text)}: {_quoted(tag)} is not a tag")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise InvalidArgument(f"image reference {_quoted(text)} has a name of more than {MAX_NAME} characters")
    return Reference(domain, path, tag if colon or at else "latest", digest)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # "foo/bar" is a user's repository on docker.io; only a dot, a port, "localhost" or capitals make the first part a domain.
    if not slash or not (set(".:[") & set(first) or first == "localhost" or first.lower() != first):
        first, rest = _DEFAULT_DOMAIN, name
    if first == _LEGACY_DOMAIN:
        first = _DEFAULT_DOMAIN
    if first == _DEFAULT_DOMAIN and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
