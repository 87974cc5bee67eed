"""What a registry's answer means, and whether it can be true. Called by `agent.registry.client`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from agent.errdefs import DataLoss, InvalidArgument, NotFound, OrlopError, PermissionDenied, Unknown
from agent.registry.messages import Transient

if TYPE_CHECKING:
    from agent.registry.transport import Answer

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_MAX_ERROR = 1 << 16
"""Bytes of an error's body that are looked at."""
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_SAID = ("message", "details", "error_description", "code", "error")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


async def check_status(answer: Answer, what: str, hide: Callable[[str], str] = str) -> None:
    """Return if the answer brings what was asked for. `hide` takes out of the host's words what nobody else may see.

    Raises:
        Transient, NotFound, PermissionDenied, Unknown: it doesn't; with what the registry said about it.
    """
    status = answer.status
    if status in (200, 206):
        return
    said = await _said(answer, hide)
    if status == 404:
        raise NotFound(f"{answer.host} has no {what}{said}")
    if status in (401, 403):
        raise PermissionDenied(f"{answer.host} refuses {what} with {status}{said}")
    if status in _TRANSIENT:
        after = _retry_after(answer.header("Retry-After"))
        wish = f"; it wants to be left alone for {after:.0f} s" if after else ""
        raise Transient(f"{answer.host} answers {status} when asked for {what}{said}{wish}", after)
    raise Unknown(f"{answer.host} answers {status} when asked for {what}{said}")


def media_type(answer: Answer, what: str) -> str:
    """What a manifest is said to be, without parameters.

    Raises:
        InvalidArgument: it is in Docker's schema 1. Its digest is that of a part of it, so that it would be taken for damaged.
    """
    found = answer.header("Content-Type").partition(";")[0].strip().lower()
    if found.startswith(_SCHEMA_1):
        raise InvalidArgument(
            f"{answer.host} has {what} only in Docker's schema 1, which nothing builds any more; push it again with a present tool"
        )
    return found


def skipped_bytes(answer: Answer, what: str, offset: int, size: int) -> int:
    """How many bytes of the body come before `offset`, where the download goes on: all of them if Range was passed over.

    Raises:
        DataLoss: the answer is about other bytes than those of `offset` to `size`.
    """
    if answer.status == 206:
        # It may be less than what was asked for (RFC 9110, 15.3.7); the rest is asked for then.
        text = answer.header("Content-Range")
        match = _CONTENT_RANGE.fullmatch(text)
        if match is None or int(match[1]) != offset or match[3] not in ("*", str(size)):
            raise DataLoss(f"{answer.host}: asked for {what} from byte {offset} of {size} on, it sends {text[:100]!r}")
        return 0
    if answer.length not in (None, size):
        raise DataLoss(f"{answer.host}: {what} comes with {answer.length} bytes, its manifest says {size}")
    return offset


async def _said(answer: Answer, hide: Callable[[str], str]) -> str:
    """The message in an error's body, for people; empty if there is none, or none that can be read."""
    try:
        document = json.loads(await answer.read(_MAX_ERROR))
        errors = document.get("errors") or [document]  # a registry's, a token server's
        text = "; ".join(filter(None, (next((str(error[key]) for key in _SAID if error.get(key)), "") for error in errors)))
    except (OrlopError, ValueError, RecursionError, TypeError, AttributeError):
        return ""
    return f": {''.join(filter(str.isprintable, hide(text)))[:300]}" if text else ""


def _retry_after(text: str) -> float:
    """Seconds; RFC 9110, 10.2.3 allows a number or a date."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
