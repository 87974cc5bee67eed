"""CNI network configurations: files to `NetworkConfig`, and from there to what one plugin reads on stdin. Sans-IO.

Follows the CNI specification 1.1, sections 1 and 3 (https://www.cni.dev/docs/spec/), and where it leaves a choice, libcni:
the files of the directory in lexical order, the first usable one is the pod network. Plugin configurations from a
sub-directory (`loadOnlyInlinedPlugins` false), which runtimes *may* read, are not: a network is one file here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.errdefs import InvalidArgument
from agent.network.strictjson import dump, kind, load_object

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that the agent speaks, oldest first. (0.3.1: without CHECK and without cached results.)"""
SUFFIXES = (".conf", ".conflist", ".json")
MAX_NAME = 128
"""Longest network name: with a sandbox id and an interface name it becomes one file name of the cache."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RELEASE = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


@dataclass(frozen=True)
class PluginConfig:
    """One entry of a network's `plugins`. `raw` is the entry as it was written, unknown keys included."""

    type: str
    capabilities: frozenset[str]
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class NetworkConfig:
    """A network: the chain of plugins that a sandbox is attached with.

    `version` is the one negotiated; `data` is the configuration list as JSON, from which `parse_list` makes the same again.
    """

    name: str
    version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool
    disable_gc: bool
    data: bytes = field(repr=False)
    source: str = ""

    @property
    def types(self) -> tuple[str, ...]:
        """The plugins' names, in the order of the chain."""
        return tuple(plugin.type for plugin in self.plugins)


@dataclass(frozen=True)
class Selection:
    """What a configuration directory says: the network in force, and one sentence for each file that can't be used."""

    network: NetworkConfig | None
    rejected: tuple[str, ...] = ()


def select(files: Iterable[tuple[str, bytes | OSError]], current: NetworkConfig | None) -> Selection:
    """Choose the network from the files of the directory, `(name, content or why it can't be read)` in lexical order.

    The first usable file wins, with one exception: while the file of the `current` network is there but broken, that
    network stays in force as it was. A half-written file must not move new pods to another network.
    """
    chosen: NetworkConfig | None = None
    rejected = []
    for name, content in files:
        try:
            if isinstance(content, OSError):
                raise InvalidArgument(f"network config {name} can't be read: {content.strerror}")
            network = parse_file(name, content)
            chosen = chosen or network
        except InvalidArgument as error:
            if chosen is None and current is not None and current.source == name:
                chosen = current
                rejected.append(f"{error}; its last good version stays in force")
            else:
                rejected.append(str(error))
    return Selection(chosen, tuple(rejected))


def parse_file(name: str, data: bytes) -> NetworkConfig:
    """The network in the file `name`: a `.conflist`, or the older one-plugin form (`.conf`, `.json`).

    Raises:
        InvalidArgument: can't be used; names the file and the reason.
    """
    if name.endswith(".conflist"):
        return parse_list(data, name)
    try:
        single = load_object(data)
        if "type" not in single and "plugins" in single:
            raise ValueError("a list of plugins belongs in a file that ends in .conflist")
        keys = {key: single[key] for key in ("name", "cniVersion", "cniVersions") if key in single}
        upgraded = dump(keys | {"plugins": [single]})
    except ValueError as error:
        raise InvalidArgument(f"network config {name} is not usable: {error}") from error
    return parse_list(upgraded, name)


def parse_list(data: bytes, source: str) -> NetworkConfig:
    """The network in a configuration list; `source` is its name in error texts.

    Raises:
        InvalidArgument: can't be used; names the source and the reason.
    """
    try:
        return _network(load_object(data), data, source)
    except ValueError as error:
        raise InvalidArgument(f"network config {source} is not usable: {error}") from error


def request(network: NetworkConfig, plugin: PluginConfig, inject: Mapping[str, Any], arguments: Mapping[str, Any]) -> bytes:
    """What `plugin` reads on stdin (specification, section 3, "Deriving request configuration").

    Its own configuration with `name` and `cniVersion` of the network, the keys of `inject` (`prevResult`), and
    `runtimeConfig` with those capability `arguments` that the plugin declares.
    """
    body = {key: value for key, value in plugin.raw.items() if key != "capabilities"}
    body.update(name=network.name, cniVersion=network.version, **inject)
    if config := {key: value for key, value in arguments.items() if key in plugin.capabilities}:
        body["runtimeConfig"] = config
    return dump(body)


def at_least(version: str, minimum: str) -> bool:
    """Whether one of `VERSIONS` is `minimum` or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(minimum)


def _network(raw: dict[str, Any], data: bytes, source: str) -> NetworkConfig:
    plugins = raw.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("it has no plugins")
    return NetworkConfig(
        name=_name(raw.get("name")),
        version=_negotiate(raw.get("cniVersion", ""), raw.get("cniVersions", [])),
        plugins=tuple(_plugin(entry, index) for index, entry in enumerate(plugins)),
        disable_check=_flag(raw, "disableCheck"),
        disable_gc=_flag(raw, "disableGC"),
        data=data,
        source=source,
    )


def _name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r:.200} is not a network name: letters, digits, '_', '.' and '-', the first a letter or digit")
    if len(name) > MAX_NAME:
        raise ValueError(f"its name has {len(name)} characters, more than {MAX_NAME}")
    return name


def _negotiate(version: object, versions: object) -> str:
    """The newest version that both the configuration and the agent speak (specification, "Version considerations")."""
    if not isinstance(version, str) or not isinstance(versions, list) or not all(isinstance(entry, str) for entry in versions):
        raise ValueError("cniVersion must be a string, cniVersions a list of strings")
    offered = [*versions, version] if version else versions
    for entry in offered:
        if not _RELEASE.fullmatch(entry):
            raise ValueError(f"cniVersion {entry!r:.200} is not a version")
    common = [ours for ours in VERSIONS if ours in offered]
    if not common:
        said = f"it asks for cniVersion {', '.join(offered)}" if offered else "it has no cniVersion"
        raise ValueError(f"{said:.200}; the agent speaks {', '.join(VERSIONS)}")
    return common[-1]


def _plugin(entry: object, index: int) -> PluginConfig:
    if not isinstance(entry, dict):
        raise ValueError(f"plugin {index} is {kind(entry)}, not an object")
    name = entry.get("type")
    # It becomes a path below a directory of executables.
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"plugin {index} has no usable type: {name!r:.200}")
    capabilities = entry.get("capabilities") or {}
    if not isinstance(capabilities, dict) or not all(isinstance(on, bool) for on in capabilities.values()):
        raise ValueError(f"capabilities of plugin {name!r} are not an object of booleans")
    return PluginConfig(name, frozenset(key for key, on in capabilities.items() if on), entry)


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {kind(value)}, not a boolean")
    return value
