"""JSON that others wrote: configuration files, what plugins print, cache files. Sans-IO.

As strict as the decoder of Go, in which nearly every plugin is written: UTF-8 without a byte order mark, no NaN, no
infinity. Whatever the bytes are, only `ValueError` comes out, so that each caller gives it the class and the name that
fit; and what came in can be dumped again.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

_DEEPEST = 100


def load_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deep, or not an object; the text completes "X is not usable: ...".
    """
    try:
        value = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if _deeper(value, _DEEPEST):
        raise ValueError("nested too deep")
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, not {kind(value)}")
    return value


def dump(value: object) -> bytes:
    """The bytes of a JSON value, compact; keys keep their order."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def kind(value: object) -> str:
    """What JSON calls the type of a decoded value, for error texts."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def excerpt(data: bytes, limit: int = 400) -> str:
    """The beginning of what somebody printed, on one line and printable, for an error text."""
    text = " ".join(data[: 4 * limit].decode(errors="replace").split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= limit and len(data) <= 4 * limit else text[:limit] + " ..."


def _deeper(value: object, limit: int) -> bool:
    """Whether lists and objects are nested deeper than `limit`: encoding such a value could exhaust the stack."""
    level = [value]
    for _ in range(limit):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.40} is too large a number")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
