"""Lists joined from bytes kept beside each record, instead of built anew per call.

A repeated message field is, on the wire, the plain sequence of its elements, each with tag and length; so a list response
is the concatenation of what each record rendered once, at its last change.
"""

from __future__ import annotations


def element(number: int, body: bytes) -> bytes:
    """One element of the repeated message field `number` (1-15), as it stands in the enclosing message."""
    length, prefix = len(body), bytearray((number << 3 | 2,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body
