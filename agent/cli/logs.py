"""`orlop logs`: a container's log file for people, or its records for programs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.aio import in_thread
from agent.cli import lookup
from agent.errdefs import FailedPrecondition
from cri.api import api_pb2 as cri
from cri.client import Client

_INTERVAL = 0.2
_CHUNK = 1 << 20


async def logs(client: Client, wanted: str, form: str, *, follow: bool, timestamps: bool) -> None:
    """Print a container's log; with `follow`, on until it ends, through rotations too.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it has no log, or the log isn't on this node.
    """
    item = await lookup.container(client, wanted)
    status = await _status(client, item.id)
    if not status.log_path:
        raise FailedPrecondition(f"container {item.id[:13]} has no log")
    with _opened(Path(status.log_path)) as reader:
        while True:
            # Asked before reading: what was written before the exit is in the file when the exit is known.
            running = follow and status.state == cri.CONTAINER_RUNNING
            await in_thread(_print, reader, form, timestamps)
            if not running:
                return
            await asyncio.sleep(_INTERVAL)
            status = await _status(client, item.id)


async def _status(client: Client, container_id: str) -> cri.ContainerStatus:
    answer: cri.ContainerStatusResponse = await client.call("ContainerStatus", cri.ContainerStatusRequest(container_id=container_id))
    return answer.status


class LogReader:
    """The records of a log file that is being written, and of the file that takes its place when it is rotated."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = path.open("rb")
        self._rest = b""

    def records(self) -> Iterator[bytes]:
        """The whole records that are there by now and were not given before, without their newlines."""
        while True:
            while chunk := self._file.read(_CHUNK):
                *whole, self._rest = (self._rest + chunk).split(b"\n")
                yield from whole
            if not self._replaced():
                return
            self._file.close()
            self._file = self._path.open("rb")

    def close(self) -> None:
        self._file.close()

    def _replaced(self) -> bool:
        """Whether the path leads to another file; the old one is read to its end then."""
        try:
            return os.stat(self._path).st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False


@contextmanager
def _opened(path: Path) -> Iterator[LogReader]:
    try:
        reader = LogReader(path)
    except OSError as error:
        raise FailedPrecondition(f"log {path} can't be read: {error.strerror}") from error
    try:
        yield reader
    finally:
        reader.close()


def _print(reader: LogReader, form: str, timestamps: bool) -> None:
    for record in reader.records():
        stamp, stream, tag, content = (*record.split(b" ", 3), b"", b"", b"")[:4]
        if form == "json":
            fields = {"time": stamp.decode(errors="replace"), "stream": stream.decode(errors="replace")}
            line = json.dumps({**fields, "partial": tag == b"P", "text": content.decode(errors="replace")})
            sys.stdout.buffer.write(line.encode() + b"\n")
        else:
            target = sys.stderr if stream == b"stderr" else sys.stdout
            target.buffer.write((stamp + b" " if timestamps else b"") + content + (b"\n" if tag == b"F" else b""))
    sys.stdout.flush()
    sys.stderr.flush()
