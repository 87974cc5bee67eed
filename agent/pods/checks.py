"""What a request may say at all, checked before anything is decided or made. What the node or the image allow is checked
where that is known: `sysctls`, `spec`, `agent.network`.

Kubernetes has validated what comes from a kubelet; crictl and others come here unchecked, and their names end up in paths,
files and other programs' arguments.
"""

from __future__ import annotations

import re

from agent.errdefs import InvalidArgument
from cri.api import api_pb2 as cri

_NAME = 253
"""Characters: a Kubernetes name is a DNS subdomain at most."""
_PATH = 4095
_HOSTNAME = re.compile(r"[A-Za-z0-9._-]{0,64}")
_SLICE = re.compile(r"[\w:.\\@-]+\.slice")
_OPTIONS = "config.linux.security_context.namespace_options"


def sandbox(config: cri.PodSandboxConfig) -> None:
    """Raises InvalidArgument, naming the field and its value."""
    for field in ("name", "namespace", "uid"):
        _name(f"config.metadata.{field}", getattr(config.metadata, field))
    if not _HOSTNAME.fullmatch(config.hostname):
        raise InvalidArgument(f"config.hostname {_shown(config.hostname)} is not a host name of at most 64 characters")
    log_directory("config.log_directory", config.log_directory)
    parent = config.linux.cgroup_parent
    if parent and not _SLICE.fullmatch(parent) and not is_path(parent):
        raise InvalidArgument(f"config.linux.cgroup_parent {_shown(parent)} is neither an absolute cgroup path nor a slice")
    for field in ("servers", "searches", "options"):
        for word in getattr(config.dns_config, field):
            if not word or not word.isprintable() or " " in word:
                raise InvalidArgument(f"config.dns_config.{field}: {_shown(word)} is not one word, as resolv.conf needs it")
    _namespaces(config.linux.security_context.namespace_options)


def container(config: cri.ContainerConfig) -> None:
    """Raises InvalidArgument, naming the field and its value."""
    _name("config.metadata.name", config.metadata.name)
    if not config.image.image:
        raise InvalidArgument("config.image.image must not be empty")
    if config.log_path and (config.log_path.startswith("/") or not is_path(f"/{config.log_path}")):
        raise InvalidArgument(f"config.log_path {_shown(config.log_path)} must be relative and stay inside of the pod's log_directory")
    if config.CDI_devices:
        raise InvalidArgument("config.CDI_devices: CDI devices are not supported yet")


def log_directory(field: str, value: str) -> None:
    """Raises InvalidArgument."""
    if value and not is_path(value):
        raise InvalidArgument(f"{field} {_shown(value)} is not an absolute path without '..'")


def command(words: list[str]) -> None:
    """Raises InvalidArgument."""
    if not words or not words[0]:
        raise InvalidArgument("cmd must not be empty")
    for word in words:
        if "\0" in word:
            raise InvalidArgument(f"cmd: {_shown(word)} holds NUL, where for the kernel it ends")


def _namespaces(options: cri.NamespaceOption) -> None:
    allowed = {"network": (cri.POD, cri.NODE), "ipc": (cri.POD, cri.NODE), "pid": (cri.POD, cri.CONTAINER, cri.NODE)}
    for field, modes in allowed.items():
        mode = getattr(options, field)
        if mode not in modes:
            names = ", ".join(map(cri.NamespaceMode.Name, modes))
            raise InvalidArgument(f"{_OPTIONS}.{field} {_mode(mode)}: for a sandbox there are {names}")
    if options.HasField("userns_options") and options.userns_options.mode != cri.NODE:
        mode = options.userns_options.mode
        raise InvalidArgument(f"{_OPTIONS}.userns_options.mode {_mode(mode)}: pods with a user namespace are not supported yet")


def _mode(mode: int) -> str:
    return cri.NamespaceMode.Name(mode) if mode in cri.NamespaceMode.values() else str(mode)


def _name(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(f"{field} must not be empty")
    if "/" in value or " " in value or not value.isprintable() or value in (".", "..") or len(value) > _NAME:
        raise InvalidArgument(f"{field} {_shown(value)} can't be a Kubernetes name")


def is_path(value: str) -> bool:
    """Absolute, and what it says: no way up, nothing that the kernel would end it at, or refuse."""
    parts = value.split("/")
    return value[0] == "/" and ".." not in parts and value.isprintable() and len(value.encode()) <= _PATH and max(map(len, parts)) <= 255


def _shown(value: str) -> str:
    return repr(value) if len(value) <= 80 else f"{value[:80]!r}... ({len(value)} characters)"
