"""A thread for one call. Used where a thread can't be used again (it left its namespaces) or may never come back.

Such work must not take a worker of the pool: a pool of threads in foreign namespaces runs the next file open in them, and
a pool of stuck threads runs nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call in a thread that is made for it and ends with it.

    A cancelled caller stops waiting; the call itself runs to its end, so what it acquires must already be owned. The end of
    our process doesn't wait for it.
    """
    future: Future[T] = Future()

    def work() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=work, name=f"throw-away: {getattr(function, '__name__', function)}", daemon=True).start()
    return await asyncio.wrap_future(future)
