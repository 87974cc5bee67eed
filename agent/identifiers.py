"""Ids of sandboxes, containers and execs: how they are made, and which are let in.

An id becomes a path component, a cgroup name and an argument of a shim, so nothing else than these characters may pass.
The rule is containerd's (pkg/identifiers): alphanumeric groups joined by single `-`, `_` or `.`.
"""

from __future__ import annotations

import re
import secrets

from agent.errdefs import InvalidArgument

MAX_LENGTH = 76
_PATTERN = re.compile(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*")


def new_id() -> str:
    """A fresh sandbox or container id: 64 hex digits, as kubelet and node tools know them."""
    return secrets.token_hex(32)


def validate(value: str, field: str) -> str:
    """`value`, if it can be an id.

    Raises:
        InvalidArgument: empty, longer than 76 characters, or characters that an id can't have.
    """
    if not value:
        raise InvalidArgument(f"{field} must not be empty")
    if len(value) > MAX_LENGTH:
        raise InvalidArgument(f"{field} has {len(value)} characters, more than the {MAX_LENGTH} an id may have: {value[:MAX_LENGTH]!r}...")
    if not _PATTERN.fullmatch(value):
        raise InvalidArgument(f"{field} {value!r} is not an id: letters and digits, joined by single '-', '_' or '.'")
    return value
