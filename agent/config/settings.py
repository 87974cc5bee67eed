"""The daemon's settings: a TOML file, then the drop-ins beside it, each key checked.

    /etc/orlop/config.toml, /etc/orlop/conf.d/*.toml (in the order of their names; tables are merged, a later value wins)

Every field below says its meaning, unit, and why its default is what it is. A key that isn't here, or a value of the wrong
type, is an error that names file and key: a misspelt setting must not be a silent default.
"""

from __future__ import annotations

import os
import shutil
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from agent.config.handlers import RuntimeHandler
from agent.errdefs import InvalidArgument


@dataclass(frozen=True)
class CniSettings:
    """Where the pod network's configuration and plugins are; the defaults are where installers put them."""

    conf_dir: Path = Path("/etc/cni/net.d")
    """The first valid file there, by name, is the pod network."""
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    """Searched in order: network installers' own plugins first, then Debian's."""


@dataclass(frozen=True)
class LogSettings:
    """The daemon's own log, and the limits of containers' logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    """`json` for log collectors."""
    max_container_log_line_size: int = 16384
    """Bytes; a longer line is cut into partial entries. -1: no limit. 16 KiB is what log agents expect from containerd."""


@dataclass(frozen=True)
class Settings:
    """All settings of `orlop serve`."""

    socket: Path = Path("/run/orlop/orlop.sock")
    """Where the kubelet and `orlop` find the daemon; for root alone."""
    state_dir: Path = Path("/run/orlop")
    """What a boot ends; has to be on a tmpfs."""
    root_dir: Path = Path("/var/lib/orlop")
    """Images, snapshots, and what outlives a boot."""
    netns_dir: Path = Path("/run/netns")
    """Where network namespaces are pinned; network plugins and `ip netns` look there."""
    cgroup: str = "/orlop.service"
    """The cgroup below which shims and the log copier live: outside of every pod, and of the daemon's own unit."""
    metrics_address: str = "127.0.0.1:9745"
    """HOST:PORT of /metrics; empty for none. Loopback, since it is not authenticated."""
    pod_cgroup: str = checked(_cgroup, "/orlop-pods")
    """Cgroup below which pods go whose client is no kubelet and names no cgroup_parent: crictl's, `orlop run`'s."""
    default_runtime: str = ""
    """The handler of pods without a RuntimeClass. Empty: runc if it is there, else the first of `runtimes`."""
    sandbox_image: str = "registry.k8s.io/pause:3.10"
    """For sandboxes that need a process: a shared PID namespace, or a handler with `sandbox = "task"`. The kubelet is told not to remove it."""
    cni: CniSettings = CniSettings()
    log: LogSettings = LogSettings()
    runtimes: dict[str, RuntimeHandler] = field(default_factory=dict)
    """Runtime handlers by name. None: one for each of runc and crun that is in PATH."""


def load(path: Path) -> Settings:
    """Read `path`, if it exists, and the drop-ins in `conf.d` beside it.

    Raises:
        InvalidArgument: an unknown key, a wrong type, a file that is not TOML, or no runtime handler at all.
    """
    merged: dict[str, Any] = {}
    for file in (path, *sorted((path.parent / "conf.d").glob("*.toml"))):
        if file.exists():
            _merge(merged, _read(file))
    return _complete(merged)


def _read(file: Path) -> dict[str, Any]:
    try:
        body = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{file} can't be read as TOML: {error}") from error
    _build(Settings, body, f"{file}: ")
    return body


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _complete(body: Mapping[str, Any]) -> Settings:
    settings: Settings = _build(Settings, body, "")
    runtimes = settings.runtimes or {
        engine: RuntimeHandler(name=engine, engine=engine) for engine in ("runc", "crun") if shutil.which(engine)
    }
    if not runtimes:
        raise InvalidArgument("no runtime handler: neither runc nor crun is in PATH, and `runtimes` is empty")
    default = settings.default_runtime or ("runc" if "runc" in runtimes else next(iter(runtimes)))
    if default not in runtimes:
        raise InvalidArgument(f"default_runtime {default!r} is not among the runtimes {sorted(runtimes)}")
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return Settings(**{**values, "runtimes": runtimes, "default_runtime": default})


def _build(kind: Any, body: object, where: str, **given: Any) -> Any:
    """A dataclass from a TOML table."""
    if not isinstance(body, Mapping):
        raise InvalidArgument(f"{where.rstrip('. ')} must be a table, not {body!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(body) - (set(hints) - set(given)))
    if unknown:
        raise InvalidArgument(f"{where}{unknown[0]} is not a setting; there are {', '.join(sorted(set(hints) - set(given)))}")
    return kind(**given, **{key: _value(hints[key], value, f"{where}{key}") for key, value in body.items()})


def _value(kind: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _build(kind, value, f"{where}.")
    if kind is Path and isinstance(value, str) and os.path.isabs(value):
        return Path(value)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _build(arguments[1], table, f"{where}.{name}.", name=name) for name, table in value.items()}
    if kind in (str, bool, int) and type(value) is kind:
        return value
    raise InvalidArgument(f"{where} is {value!r}, but must be {_expected(kind, origin, arguments)}")


def _expected(kind: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if kind is Path:
        return "an absolute path"
    if origin is tuple:
        return "a list"
    return {str: "a string", bool: "true or false", int: "a whole number"}.get(kind, "a table")
