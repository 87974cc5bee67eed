"""TOML files into frozen dataclasses: each value is checked against its field, and an error says where the value stands.

Knows the types that settings need: str, int, bool, Path (absolute), Literal, tuple[T, ...], dict[str, table] and tables. A
field without a default is the table's own name and no key; nor is one that is `derived`. A file is checked by itself, before
it is merged with others, so that the error names the file that has the mistake.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from agent.errdefs import InvalidArgument

T = TypeVar("T")

_SCALARS: dict[Any, str] = {str: "a string", int: "an integer", bool: "true or false"}


def checked(check: Callable[[T], str], default: T) -> T:
    """A dataclass field with a rule beyond its type: `check` says what is wrong with a value, or nothing."""
    return dataclasses.field(default=default, metadata={"check": check})


def derived(default: T) -> T:
    """A dataclass field that is no key: it follows from other settings."""
    return dataclasses.field(default=default, metadata={"derived": True})


def read(file: Path, settings: type) -> dict[str, Any]:
    """The values of one file, in the types of the fields of `settings`; tables are dicts.

    Raises:
        InvalidArgument: it can't be read, is no TOML, or has a key or a value that `settings` doesn't take.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{file}: it can't be read: {error.strerror}") from error
    except ValueError as error:  # a TOMLDecodeError or a UnicodeDecodeError
        raise InvalidArgument(f"{file}: it is not TOML: {error}") from error
    return _Reader(file).table(content, settings, "")


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put `values` over `into`, tables key by key."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def build(settings: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass with these values, and its defaults for what is not given."""
    hints = get_type_hints(settings)
    return settings(**{key: build(hints[key], value) if dataclasses.is_dataclass(hints[key]) else value for key, value in values.items()})


class _Reader:
    def __init__(self, file: Path) -> None:
        self._file = file

    def table(self, content: Mapping[str, Any], settings: Any, prefix: str) -> dict[str, Any]:
        hints = get_type_hints(settings)
        fields = {field.name: field for field in dataclasses.fields(settings) if _is_key(field)}
        values = {}
        for key, value in content.items():
            if key not in fields:
                raise self._refused(f"{prefix}{key}", value, f"there is no such key; there are {', '.join(fields)}")
            values[key] = self._value(value, hints[key], f"{prefix}{key}")
            check = fields[key].metadata.get("check")
            if check is not None and (complaint := check(values[key])):
                raise self._refused(f"{prefix}{key}", value, complaint)
        return values

    def _value(self, value: Any, hint: Any, key: str) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if dataclasses.is_dataclass(hint):
            return self.table(self._expect(value, dict, "a table", key), hint, f"{key}.")
        if origin is dict:
            tables = self._expect(value, dict, "a table of tables", key)
            return {name: self._value(table, arguments[1], f"{key}.{name}") for name, table in tables.items()}
        if origin is tuple:
            return tuple(self._value(item, arguments[0], key) for item in self._expect(value, list, "an array", key))
        if origin is Literal:
            if value not in arguments:
                raise self._refused(key, value, f"it is not one of {', '.join(map(repr, arguments))}")
            return value
        if hint is Path:
            if not self._expect(value, str, "a string", key).startswith("/"):
                raise self._refused(key, value, "it is not an absolute path")
            return Path(value)
        return self._expect(value, hint, _SCALARS[hint], key)

    def _expect(self, value: Any, kind: type, called: str, key: str) -> Any:
        if type(value) is not kind:  # not isinstance: True is no integer here
            raise self._refused(key, value, f"it is not {called}")
        return value

    def _refused(self, key: str, value: Any, reason: str) -> InvalidArgument:
        return InvalidArgument(f"{self._file}: {key} = {value!r}: {reason}")


def _is_key(field: dataclasses.Field[Any]) -> bool:
    is_the_name = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return not is_the_name and "derived" not in field.metadata
