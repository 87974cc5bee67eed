"""What is to go wrong: a file of lines `POINT KIND`, which the shim reads at each call, and a file in which it notes what did.

A point is a method of the task service (`Create`), or an action of the program (`start`, `delete`). Kinds:

    error        an error (of a method: code 2), and nothing was done
    missing      NotFound, though it is there; nothing was done
    lies         success, and nothing was done
    mute         no answer, and nothing was done
    mute-after   it is done, and not answered
    slow         it is done SLOW seconds later
    crash        the shim kills itself before anything is done
    crash-after  it kills itself when it is done, before the answer
    garbage      an answer that is none; of an action: what is in the file `garbage`
    overlay      of Create: done, and then mounts are put over the rootfs (`overlays`)
    keeps        of Delete: these are not taken away first, so that they are left to the action `delete`
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

SLOW = 1.0
"""Seconds."""


class Faults:
    """Those of the shim whose home is the directory `home`."""

    def __init__(self, home: Path) -> None:
        self._todo = home / "faults"
        self._done = home / "hits"

    def set(self, *lines: str) -> None:
        """From now on these, and no others."""
        draft = self._todo.with_suffix(".new")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.rename(self._todo)

    def at(self, point: str, *kinds: str) -> str:
        """The kind of fault that is wanted at `point`, one of `kinds` if some are given; empty: none. It is noted as hit."""
        for line in self._todo.read_text().splitlines():
            where, _, kind = line.partition(" ")
            if where == point and (not kinds or kind in kinds):
                with self._done.open("a") as done:  # one write, so that several processes may
                    done.write(f"{line}\n")
                return kind
        return ""

    def hits(self) -> list[str]:
        """What went wrong so far, as the lines that wanted it."""
        return self._done.read_text().splitlines() if self._done.exists() else []

    def forget(self) -> None:
        self._done.unlink(missing_ok=True)


def crash() -> NoReturn:
    """End as no handler can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still there after SIGKILL")
