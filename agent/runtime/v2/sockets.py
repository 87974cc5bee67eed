"""Sockets that dead shims leave: a shim removes its own when it exits in order, but not when it is killed."""

from __future__ import annotations

import contextlib
import os
import socket

from agent import log
from agent.aio import in_thread

_log = log.get("runtime")

_LONGEST = 107
"""Bytes of a socket's path (unix(7)); a shim that tells a longer one listens nowhere."""


class Sockets:
    """Removes stale sockets."""

    async def remove_stale(self, address: str) -> None:
        """Unlink the socket at a shim's address, if a connect to it is refused; one that somebody listens at stays.

        Nothing there, an address without a file (abstract, vsock), or one that no socket can have: a no-op. Raises OSError from the kernel.
        """
        path = address.removeprefix("unix://")
        if path.startswith("/") and len(os.fsencode(path)) <= _LONGEST:
            await in_thread(_remove_stale, path)


def _remove_stale(path: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its queue is full, so somebody listens
            pass
    _log.warning("somebody listens at the socket of a shim that is dead; it stays", socket=path)
