"""What a plugin prints: results of ADD (0.3.1 to 1.1) and errors. Sans-IO.

The formats are those of the CNI specification 1.1, section 5; 0.3.1 and 0.4.0 differ from 1.x by a `version` key in each
address, which says what the address itself says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.network.conf import VERSIONS
from agent.network.strictjson import kind, load_object

TRY_AGAIN = 11
"""A passing condition; the same call can succeed later."""
UNKNOWN_CONTAINER = 3
"""The plugin knows nothing of the container: as an answer to DEL, there is nothing to undo."""
NOT_AVAILABLE = (50, 51)
"""Answers to STATUS: the plugin can't serve an ADD now."""


@dataclass(frozen=True)
class Interface:
    """A network interface that an attachment made; `sandbox` is the netns path, empty for one on the host."""

    name: str
    mac: str = ""
    sandbox: str = ""


@dataclass(frozen=True)
class Result:
    """The outcome of an ADD.

    `ips` are the pod's addresses, without prefix length, in the order of the plugins (the first is the primary one);
    `raw` is the result as it was printed, which CHECK and DEL get as `prevResult`.
    """

    ips: tuple[str, ...]
    interfaces: tuple[Interface, ...]
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Failure:
    """An error as a plugin reports it (section 5, "Error")."""

    code: int
    message: str
    details: str = ""

    def __str__(self) -> str:
        text = self.message or "no message"
        if self.details:
            text += f"; {self.details}"
        return f"{text} (code {self.code})" if self.code else text


def parse_result(data: bytes, version: str, ifname: str) -> Result:
    """The result in a plugin's stdout. `version` is the request's: a result that names none has that one, as in libcni.

    Raises:
        ValueError: it is not a result; the text completes "printed no result: ...".
    """
    raw = load_object(data)
    if raw.get("cniVersion", "") == "":
        raw["cniVersion"] = version
    if raw["cniVersion"] not in VERSIONS:
        raise ValueError(f"cniVersion {raw['cniVersion']!r:.100} was not asked for")
    return read_result(raw, ifname)


def read_result(raw: Mapping[str, Any], ifname: str) -> Result:
    """The result in a decoded object, such as a cached one.

    Raises:
        ValueError: it is not a result.
    """
    interfaces = tuple(_interface(entry) for entry in _list(raw, "interfaces"))
    ips: dict[str, None] = {}
    for entry in _list(raw, "ips"):
        address, index = _address(entry)
        if index is not None and not 0 <= index < len(interfaces):
            raise ValueError(f"address {address} is on interface {index}, of {len(interfaces)}")
        # Plugins may report addresses of the host's end as well; without an index it is the pod's.
        if index is None or interfaces[index].name == ifname:
            ips[address] = None
    return Result(tuple(ips), interfaces, raw)


def parse_failure(data: bytes) -> Failure | None:
    """The error object in what a failed plugin printed; None: it printed something else."""
    try:
        raw = load_object(data)
    except ValueError:
        return None
    code, message, details = raw.get("code", 0), raw.get("msg", ""), raw.get("details", "")
    if isinstance(code, bool) or not isinstance(code, int) or not isinstance(message, str) or not isinstance(details, str):
        return None
    return Failure(code, message, details) if code or message or details else None


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if value is None:  # Go prints an empty slice as null
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} is {kind(value)}, not a list")
    return value


def _interface(entry: object) -> Interface:
    if not isinstance(entry, dict):
        raise ValueError(f"an interface is {kind(entry)}, not an object")
    name, mac, sandbox = entry.get("name", ""), entry.get("mac", ""), entry.get("sandbox", "")
    if not isinstance(name, str) or not isinstance(mac, str) or not isinstance(sandbox, str):
        raise ValueError(f"interface {name!r:.100} has a name, mac or sandbox that is not a string")
    return Interface(name, mac, sandbox)


def _address(entry: object) -> tuple[str, int | None]:
    if not isinstance(entry, dict) or not isinstance(text := entry.get("address"), str):
        raise ValueError("an entry of ips has no address")
    index = entry.get("interface")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise ValueError(f"interface of address {text!r:.100} is {kind(index)}, not a number")
    try:
        return str(ipaddress.ip_interface(text).ip), index
    except ValueError as error:
        raise ValueError(f"{text!r:.100} is not an address") from error
