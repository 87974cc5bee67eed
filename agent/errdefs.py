"""Error classes of the agent, one for each status code that somebody acts on.

Packages raise these with a sentence for people; callers ask for the class; `cri.server` translates to gRPC and
`agent.ttrpc` from and to `google.rpc.Status`, each at one place. The numbers are gRPC's.
"""

from __future__ import annotations

import enum
import errno


class Code(enum.IntEnum):
    """Status codes of gRPC and of ttrpc (https://grpc.github.io/grpc/core/md_doc_statuscodes.html)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class OrlopError(Exception):
    """Base of all errors below; never raised itself. `str(error)` is a sentence for the operator."""

    code: Code = Code.UNKNOWN


class Cancelled(OrlopError):
    """The operation was given up by who asked for it."""

    code = Code.CANCELLED


class Unknown(OrlopError):
    """A peer failed and gave no class for it; shims report the engine's own text so."""

    code = Code.UNKNOWN


class InvalidArgument(OrlopError):
    """A request that can't be right, whatever the state of the node. Names the field and the value."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(OrlopError):
    """A budget of `agent.timeouts` ran out. Says nothing about whether the peer is dead."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(OrlopError):
    code = Code.NOT_FOUND


class AlreadyExists(OrlopError):
    code = Code.ALREADY_EXISTS


class PermissionDenied(OrlopError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(OrlopError):
    """Too much of something: a message too large, a disk that is full."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(OrlopError):
    """Right in itself, but not in the present state of the sandbox, container or node."""

    code = Code.FAILED_PRECONDITION


class Busy(FailedPrecondition):
    """Something pins the resource (EBUSY). The message names the holders; the resource stays owned."""


class Aborted(OrlopError):
    """Lost a race with another operation on the same object; trying again can succeed."""

    code = Code.ABORTED


class Unimplemented(OrlopError):
    code = Code.UNIMPLEMENTED


class Internal(OrlopError):
    """The agent's own fault, or a peer that broke its protocol."""

    code = Code.INTERNAL


class Unavailable(OrlopError):
    code = Code.UNAVAILABLE


class Closed(OrlopError):
    """The connection to a shim is gone: EOF, reset, EPIPE, a short read or our own close.

    Apart from every status code on purpose: `Closed` doesn't prove that the shim is dead, and no shim can send it.
    """

    code = Code.UNAVAILABLE


class DataLoss(OrlopError):
    """Stored or received bytes are not what they should be: a wrong digest, a torn record."""

    code = Code.DATA_LOSS


_CLASSES: dict[int, type[OrlopError]] = {
    cls.code: cls
    for cls in (
        Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted,
        FailedPrecondition, Aborted, Unimplemented, Internal, Unavailable, DataLoss,
    )
}  # fmt: skip


def from_code(code: int, message: str) -> OrlopError:
    """The error for a status code that came over the wire; an unknown number is `Unknown`."""
    return _CLASSES.get(code, Unknown)(message)


MAKE_ROOM = "make room there; until then nothing new is made, and what there is can be removed"
LOOK_AT_THE_DISK = "see the kernel's log for that disk; until it can be written nothing new is made, and what there is can be removed"
"""What to do about a disk, for the end of a sentence that names it."""


def of_disk(error: OSError, what: str = "") -> OrlopError | None:
    """What to tell of a disk that is full or fails, which is nobody's fault here; None for other errors. `what` could not be written."""
    told: OrlopError
    subject = f"{what or error.filename or 'a file'} could not be written"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            told = ResourceExhausted(f"{subject}: the disk is full ({error.strerror}); {MAKE_ROOM}")
        case errno.EIO | errno.EROFS:
            told = Unavailable(f"{subject}: the disk fails ({error.strerror}); {LOOK_AT_THE_DISK}")
        case _:
            return None
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
