"""Digests as OCI writes them: "sha256:" and 64 hex digits, or sha512 with 128. Used wherever a digest comes in from outside.

Whatever is stored here is stored by sha256; what a registry gives out under a sha512 is verified by that.
https://github.com/opencontainers/image-spec/blob/main/descriptor.md#registered-algorithms
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from agent.errdefs import InvalidArgument

ALGORITHM = "sha256"
"""What this node's own digests are made with."""
_HEX_DIGITS = {ALGORITHM: 64, "sha512": 128}
ALGORITHMS = frozenset(_HEX_DIGITS)
"""What digests can be verified by."""

_DIGEST = re.compile("|".join(f"{algorithm}:[a-f0-9]{{{digits}}}" for algorithm, digits in _HEX_DIGITS.items()))


def validate_digest(text: str, algorithms: Collection[str] = ALGORITHMS) -> str:
    """`text`, if it is a digest by one of these algorithms, and so safe as a file name.

    Raises:
        InvalidArgument: it isn't.
    """
    if not _DIGEST.fullmatch(text) or text.partition(":")[0] not in algorithms:
        forms = " or ".join(f"{algorithm}:<{digits} hex digits>" for algorithm, digits in _HEX_DIGITS.items() if algorithm in algorithms)
        raise InvalidArgument(f"{text[:100]!r} is not a digest of the form {forms}")
    return text


def hasher(digest: str = "") -> hashlib._Hash:
    """For bytes that should have this digest; by our own algorithm without one."""
    return hashlib.new(digest.partition(":")[0] or ALGORITHM)


def digest_of(data: bytes, like: str = "") -> str:
    """The digest of bytes in memory, by the algorithm of the digest that it is compared with."""
    found = hasher(like)
    found.update(data)
    return f"{found.name}:{found.hexdigest()}"
