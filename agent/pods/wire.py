"""Lists joined from bytes kept beside each record, instead of built anew per call.

A repeated message field is, on the wire, the plain sequence of its elements, each with tag and length; so a list response
is the concatenation of what each record rendered once, at its last change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

CHUNK = 1 << 20
"""Bytes from which on a stream's message is sent; clients take at most 4 to 16 MiB, and one element is a few KiB."""


def element(number: int, body: bytes) -> bytes:
    """One element of the repeated message field `number` (1-15), as it stands in the enclosing message."""
    length, prefix = len(body), bytearray((number << 3 | 2,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body


def chunks(elements: Iterable[bytes]) -> Iterator[bytes]:
    """Wire bytes of elements, in their order, put together to messages of a size to be sent. None for none."""
    gathered: list[bytes] = []
    size = 0
    for item in elements:
        gathered.append(item)
        size += len(item)
        if size >= CHUNK:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
