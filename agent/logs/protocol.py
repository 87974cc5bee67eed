"""What the daemon and the log copier say to each other: JSON objects, one a packet, on a SOCK_SEQPACKET socket. Sans-IO.

    request   {"seq": N, "op": NAME, ...}           with the read ends of the FIFOs (SCM_RIGHTS) for `open`
    answer    {"seq": N, ...}                       answers come in any order
    refusal   {"seq": N, "code": errdefs.Code, "message": SENTENCE}
    event     {"event": "write-errors", ...}        from the copier, when records of a container couldn't be written

    ping                                            pid, version
    open    id streams path max_line strict         opens the log and copies; again with the same FIFOs: nothing happens
    reopen  id                                      the log's path again, after a rotation
    drain   id budget_ms                            result (eof, timeout, error), bytes, dropped
    close   id                                      copies what is there, ends; an unknown id is fine
    list    after                                   containers (PAGE of them, by id), more
    quit                                            ends the process, as SIGTERM does

`path` null: read and discard. `strict`: refuse when the log can't be opened, instead of trying again at each write.
`open`, `reopen` and `close` of one id are carried out in the order they came. They are answered when they are done, which is
at once unless the log's file system hangs; `drain` is answered within its budget. Each may be sent again.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any

from agent import errdefs

VERSION = "2"
"""Of the copier's code and of this protocol. A daemon replaces a running copier of another one, in order."""
PACKET = 64 << 10
"""Bytes of the largest packet; two paths and a page of ids are far below."""
PAGE = 100
"""Containers in one answer to `list`."""
DESCRIPTORS = 2
"""Most descriptors in one packet."""

Message = Mapping[str, Any]

_CODES = {
    errno.ENOENT: errdefs.Code.NOT_FOUND,
    errno.ENOTDIR: errdefs.Code.NOT_FOUND,
    errno.ELOOP: errdefs.Code.INVALID_ARGUMENT,
    errno.EISDIR: errdefs.Code.INVALID_ARGUMENT,
    errno.ENAMETOOLONG: errdefs.Code.INVALID_ARGUMENT,
    errno.EACCES: errdefs.Code.PERMISSION_DENIED,
    errno.EROFS: errdefs.Code.FAILED_PRECONDITION,
    errno.ENOSPC: errdefs.Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: errdefs.Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: errdefs.Code.RESOURCE_EXHAUSTED,
}


def encode(message: Message) -> bytes:
    """A packet. Path names that aren't UTF-8 survive as lone surrogates (`os.fsdecode`), which JSON escapes."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(packet: bytes) -> dict[str, Any]:
    """A packet's message.

    Raises:
        Internal: not a JSON object; the peer broke the protocol.
    """
    try:
        message = json.loads(packet)
    except ValueError as error:
        raise errdefs.Internal(f"the log copier's socket carried {packet[:80]!r}, which is not JSON") from error
    if not isinstance(message, dict):
        raise errdefs.Internal(f"the log copier's socket carried {packet[:80]!r}, which is not an object")
    return message


def refusal(error: Exception) -> dict[str, Any]:
    """The fields that carry an error; `OSError` gets the class that the CRI's caller can act on."""
    if isinstance(error, errdefs.OrlopError):
        code = error.code
    elif isinstance(error, OSError) and error.errno is not None:
        code = _CODES.get(error.errno, errdefs.Code.INTERNAL)
    else:
        code = errdefs.Code.INTERNAL
    return {"code": int(code), "message": _sentence(error)}


def _sentence(error: Exception) -> str:
    """What `str` says, without the "[Errno 2]" that it puts before an `OSError`'s."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def check(answer: Message) -> Message:
    """`answer`, or its error raised as an `errdefs` class."""
    if "code" in answer:
        raise errdefs.from_code(int(answer["code"]), str(answer["message"]))
    return answer
