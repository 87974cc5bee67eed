"""Stop signals: names of the CRI enum and of image configs, to Linux numbers and back."""

from __future__ import annotations

import re
import signal
from typing import cast

from agent.errdefs import InvalidArgument
from cri.api import api_pb2 as cri

_ALIASES = {"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}
_NUMBER = re.compile("[0-9]{1,3}")
_REAL_TIME = re.compile("(SIGRTMIN|SIGRTMAX)([+-][0-9]{1,3})")


def parse(text: str, field: str) -> int:
    """A signal's number from "SIGTERM", "TERM", "15", "SIGRTMIN+3".

    Raises:
        InvalidArgument: no such signal.
    """
    if _NUMBER.fullmatch(text) and 1 <= int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    name = _ALIASES.get(name, name)
    if match := _REAL_TIME.fullmatch(name):
        number = int(signal.Signals[match[1]]) + int(match[2])
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    try:
        return int(signal.Signals[name])
    except KeyError as error:
        raise InvalidArgument(f"{field} {text!r} is not a signal") from error


def from_cri(value: cri.Signal, field: str) -> int | None:
    """The number for a CRI enum value; None for RUNTIME_DEFAULT, which leaves the choice to the image.

    Raises:
        InvalidArgument: a number outside of the enum.
    """
    if value == cri.SIGNAL_RUNTIME_DEFAULT:
        return None
    if value not in cri.Signal.values():
        raise InvalidArgument(f"{field} {value} is not a signal of the CRI")
    return parse(cri.Signal.Name(value).removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-"), field)


def _to_cri() -> dict[int, cri.Signal]:
    table: dict[int, cri.Signal] = {}
    for name, value in cri.Signal.items():
        if value != cri.SIGNAL_RUNTIME_DEFAULT:
            table.setdefault(parse(name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-"), name), cast(cri.Signal, value))
    return table


_NUMBERS = _to_cri()


def to_cri(number: int) -> cri.Signal:
    """The CRI enum value of a Linux signal number."""
    return _NUMBERS.get(number, cri.SIGNAL_RUNTIME_DEFAULT)
