"""How exits become known. Several sources tell of the same one (a `Wait` left outstanding, an event, `Delete`, the cleanup of
a dead shim), perhaps twice and with differing times: the first is taken, the rest is ignored (runtime-v2 section 4).
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from agent import log
from agent.api.runtime.task.v3.shim_pb2 import DeleteResponse, WaitRequest, WaitResponse
from agent.errdefs import Closed, NotFound, OrlopError
from agent.events import Exit
from agent.events.types import UNKNOWN_STATUS
from agent.runtime.v2.shim import Shim

_log = log.get("runtime")

_NO_PID = 0xFFFFFFFF
"""-1, which shims print where they know none. Never let it near a signal."""
_RETRY = 1.0


class Ended(Protocol):
    """A process whose exit is waited for: a `Task` or an `ExecProcess`."""

    @property
    def shim(self) -> Shim: ...
    @property
    def exited(self) -> Exit | None: ...
    def finish(self, exit_: Exit, /) -> bool: ...


def nanoseconds(timestamp: Timestamp) -> int:
    """Unix nanoseconds. A time that is not set (0, or Go's year 1) is now: the exit has just become known."""
    return timestamp.ToNanoseconds() if timestamp.seconds > 0 else time.time_ns()


def known(status: int, exited_at: Timestamp, pid: int) -> Exit:
    """An exit that a shim told."""
    return Exit(status=status, exited_at=nanoseconds(exited_at), pid=0 if pid == _NO_PID else pid)


def lost(pid: int, cause: str) -> Exit:
    """An exit whose status nobody knows."""
    return Exit(status=UNKNOWN_STATUS, exited_at=time.time_ns(), pid=pid, reason="Unknown", message=cause)


def of_delete(response: DeleteResponse) -> Exit | None:
    """The exit that `Delete` tells of; None for the zero time that it answers for a task that never ran."""
    if response.exited_at.seconds <= 0:
        return None
    return known(response.exit_status, response.exited_at, response.pid)


async def wait(process: Ended, container_id: str, exec_id: str, pid: int) -> None:
    """Keep a `Wait` outstanding until the exit is known, over any number of connections.

    Ends without an exit when the shim is dead (its cleanup tells one) or doesn't know the process.
    """
    request = WaitRequest(id=container_id, exec_id=exec_id)
    while process.exited is None:
        try:
            await process.shim.wait_connected()
        except Closed:
            return
        try:
            response = await process.shim.call("Wait", request, WaitResponse)
        except NotFound:
            return
        except Closed:
            await process.shim.wait_settled()
        except OrlopError as error:
            _log.warning("Wait failed, asking again", container=container_id, exec=exec_id, error=str(error))
            await asyncio.sleep(_RETRY)
        else:
            process.finish(known(response.exit_status, response.exited_at, pid))
