"""Digests as OCI writes them: "sha256:" and 64 hex digits. Used wherever a digest comes in from outside."""

from __future__ import annotations

import hashlib
import re

from agent.errdefs import InvalidArgument

ALGORITHM = "sha256"
"""The only one in the field; image-spec lets an implementation refuse others (descriptor.md, "Registered Algorithms")."""

_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")


def validate_digest(text: str) -> str:
    """`text`, if it is a sha256 digest, and so safe as a file name.

    Raises:
        InvalidArgument: it isn't.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(f"{text[:100]!r} is not a digest of the form sha256:<64 hex digits>")
    return text


def digest_of(data: bytes) -> str:
    """The digest of bytes in memory."""
    return f"{ALGORITHM}:{hashlib.sha256(data).hexdigest()}"
