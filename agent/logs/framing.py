"""The CRI log format: one stream's bytes in, log records out. Sans-IO; the log copier feeds it.

A record is `<RFC3339Nano local time> <stdout|stderr> <P|F> <content>\\n` (runtime-v2.md 8; the kubelet parses it in
pkg/kubelet/kuberuntime/logs). F ends a line. P doesn't: the line was longer than the limit, or the stream ended within it.

Records of one chunk differ by one nanosecond each, since log stores drop equal timestamps with equal text (decisions.md
27). Up to the microsecond a chunk's timestamps are the same, so each is a shared head and one of a thousand prepared
ends, and a chunk costs one `split`, three slice assignments and one `join`, whatever its lines are: 1.3 GB/s with lines
of 100 bytes, where a `replace` that repeats one timestamp makes 5 and a loop over the lines 0.2.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

MAX_LINE = 16384
"""Bytes of content in a record, by default; containerd's `max_container_log_line_size`."""
LONGEST_LINE = 16 << 20
"""Bytes of content in a record that is said to be unlimited: a line is held in memory until it ends, and the copier is
everybody's."""
CLOCK_SET_BACK = 1_000_000_000
"""Nanoseconds. Timestamps of a stream rise; a clock that falls by more than this was set, and is followed."""


_LONG = 512
"""Bytes of a chunk's first line from which on its lines are taken for long ones."""


class Framer:
    """One stream of one container."""

    def __init__(self, stream: str, max_line: int = MAX_LINE) -> None:
        """`stream` is stdout or stderr; `max_line` is in bytes, zero and less mean `LONGEST_LINE`."""
        self._stream = stream
        self._limit = max_line if max_line > 0 else LONGEST_LINE
        self._held = bytearray()
        self._last = 0
        self._second = -1
        self._date = ""
        self._zone = ""

    @property
    def held(self) -> int:
        """Bytes fed that are in no record yet: the line isn't at its end, nor over the limit."""
        return len(self._held)

    def feed(self, chunk: bytes, now_ns: int) -> bytes:
        """The records that `chunk` completes, as bytes for the log; may be empty. `now_ns` is Unix time.

        Where a stream is cut into chunks makes no difference to the records.
        """
        end = chunk.rfind(b"\n") + 1
        partial: list[int] = []
        contents: list[bytes] = []
        if end:
            text = chunk if end == len(chunk) else chunk[:end]
            if self._held:
                text = bytes(self._held + text)
            self._held = bytearray(chunk[end:])
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n")
            contents = _lines(text)
            if _has_longer_line(text, self._limit):
                contents, partial = _cut(contents, self._limit)
        else:
            self._held += chunk
        self._cut_held(contents, partial)
        return self._records(contents, partial, now_ns)

    def finish(self, now_ns: int) -> bytes:
        """The stream is at its end: what is held, as P; empty if nothing is."""
        if not self._held:
            return b""
        contents, _ = _cut([bytes(self._held)], self._limit)
        self._held = bytearray()
        return self._records(contents, range(len(contents)), now_ns)

    def put_back(self) -> int:
        """Forget what is held, and say how many bytes that were: the caller still has them and will feed them again."""
        held, self._held = len(self._held), bytearray()
        return held

    def _cut_held(self, contents: list[bytes], partial: list[int]) -> None:
        """Move what is over the limit from the unfinished line to `contents`. A last `\\r` may yet belong to the line's end."""
        while len(self._held) - self._held.endswith(b"\r") > self._limit:
            partial.append(len(contents))
            contents.append(bytes(self._held[: self._limit]))
            del self._held[: self._limit]

    def _records(self, contents: list[bytes], partial: Sequence[int], now_ns: int) -> bytes:
        if not contents:
            return b""
        count = len(contents)
        first = now_ns if now_ns > self._last or self._last - now_ns > CLOCK_SET_BACK else self._last + 1
        self._last = first + count - 1
        pieces = [b""] * (3 * count + 1)
        at = 0
        while at < count:
            micros, offset = divmod(first + at, 1000)
            stop = min(count, at + 1000 - offset)
            head = self._head(micros)
            pieces[3 * at : 3 * stop : 3] = [head] * (stop - at)
            pieces[3 * at + 1 : 3 * stop : 3] = _ends(self._zone, self._stream, "F")[offset : offset + stop - at]
            at = stop
        pieces[2::3] = contents
        for index in partial:
            pieces[3 * index + 1] = _ends(self._zone, self._stream, "P")[(first + index) % 1000]
        pieces[0] = pieces[0][1:]
        pieces[-1] = b"\n"
        return b"".join(pieces)

    def _head(self, micros: int) -> bytes:
        """A newline and the timestamp up to the microseconds; sets the zone that goes with it."""
        second, fraction = divmod(micros, 1_000_000)
        if second != self._second:
            local = time.localtime(second)
            self._second = second
            self._date = time.strftime("\n%Y-%m-%dT%H:%M:%S", local)
            self._zone = _zone(local.tm_gmtoff)
        return f"{self._date}.{fraction:06d}".encode()


def _zone(offset: int) -> str:
    """RFC 3339's time-offset of a number of seconds east of UTC."""
    if offset == 0:
        return "Z"
    hours, minutes = divmod(abs(offset) // 60, 60)
    return f"{'-' if offset < 0 else '+'}{hours:02d}:{minutes:02d}"


@lru_cache(maxsize=16)
def _ends(zone: str, stream: str, tag: str) -> list[bytes]:
    """What follows the microseconds: the nanoseconds' three digits, each with the rest of the prefix."""
    return [f"{nanos:03d}{zone} {stream} {tag} ".encode() for nanos in range(1000)]


def _lines(text: bytes) -> list[bytes]:
    """The lines of `text`, without their ends. `split` looks at every byte, `find` at many at once, for the price of a call a line."""
    if text.find(b"\n") < _LONG:
        lines = text.split(b"\n")
        lines.pop()
        return lines
    lines, at = [], 0
    while (end := text.find(b"\n", at)) >= 0:
        lines.append(text[at:end])
        at = end + 1
    return lines


def _has_longer_line(text: bytes, limit: int) -> bool:
    """Whether a line of `text`, which ends with a newline, is longer than `limit`: a few searches, not a look at each line."""
    at = 0
    while len(text) - at > limit + 1:
        at = text.rfind(b"\n", at, at + limit + 1) + 1
        if not at:
            return True
    return False


def _cut(lines: list[bytes], limit: int) -> tuple[list[bytes], list[int]]:
    """The lines in pieces of at most `limit`, and which pieces don't end their line."""
    contents: list[bytes] = []
    partial: list[int] = []
    for line in lines:
        cuts = range(0, max(len(line) - 1, 0) // limit * limit, limit)
        partial.extend(range(len(contents), len(contents) + len(cuts)))
        contents.extend(line[at : at + limit] for at in cuts)
        contents.append(line[len(cuts) * limit :])
    return contents, partial
