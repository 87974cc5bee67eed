"""Named points at which a test makes the agent fail, wait, hang or die.

A step that touches the world outside the process calls `hit("package.step")` right before it acts. Off (the rule), that
is one look at an empty dict. On, by `ORLOP_FAILPOINTS` or `configure()`, in the small language

    NAME=ACTION[;NAME=ACTION...]    ACTION = [N*]error(TEXT) | [N*]delay(SECONDS) | [N*]pause | [N*]hang | [N*]crash

where `N*` means: only the N-th time, and the name `*` is every failpoint that isn't named. `pause` lasts until failpoints are
configured anew. `crash` is a SIGKILL to this process: no `finally`, no flush, as in a power cut of the daemon alone. The idea
is containerd's `internal/failpoint`.

A daemon that was started with `ORLOP_FAILPOINTS` in its environment, be it empty, takes others later over its admin service.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import dataclass, field

from agent.errdefs import Internal, InvalidArgument

_ACTION = re.compile(
    r"(?:(?P<nth>[1-9][0-9]*)\*)?"
    r"(?:(?P<verb>error|pause|hang|crash)(?:\((?P<argument>[^)]*)\))?|(?P<delay>delay)\((?P<seconds>[0-9]+(?:\.[0-9]+)?)\))"
)


@dataclass
class _Point:
    verb: str
    argument: str
    nth: int
    hits: int = 0
    replaced: asyncio.Event = field(default_factory=asyncio.Event)


_ALL = "*"
_points: dict[str, _Point] = {}
_passed: list[str] = []


def configure(text: str) -> None:
    """Replace all failpoints by those of `text`; the empty string switches them off.

    Raises:
        InvalidArgument: `text` is not in the language above.
    """
    points = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, action = entry.partition("=")
        match = _ACTION.fullmatch(action)
        if not name or match is None:
            raise InvalidArgument(f"failpoint {entry!r} is not NAME=[N*]error(TEXT)|delay(SECONDS)|pause|hang|crash")
        points[name] = _Point(match["verb"] or match["delay"], match["argument"] or match["seconds"] or "", int(match["nth"] or 0))
    for point in _points.values():
        point.replaced.set()
    _points.clear()
    _points.update(points)
    _passed.clear()


def passed() -> list[str]:
    """The names of the failpoints that were passed, on or not, since the last `configure()` that switched one on; in order."""
    return list(_passed)


async def hit(name: str) -> None:
    """Pass the failpoint `name`.

    Raises:
        Internal: the point is on with `error`.
    """
    if not _points:
        return
    _passed.append(name)
    if (point := _points.get(name) or _points.get(_ALL)) is None:
        return
    point.hits += 1
    if point.nth and point.hits != point.nth:
        return
    match point.verb:
        case "error":
            raise Internal(f"failpoint {name}: {point.argument or 'error'}")
        case "delay":
            await asyncio.sleep(float(point.argument))
        case "pause":
            await point.replaced.wait()
        case "hang":
            await asyncio.get_running_loop().create_future()
        case _:
            os.write(2, f"failpoint {name}: crash\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


ALLOWED = "ORLOP_FAILPOINTS" in os.environ
"""Whether this process may be told of failpoints from outside: never on a node that works."""
configure(os.environ.get("ORLOP_FAILPOINTS", ""))
