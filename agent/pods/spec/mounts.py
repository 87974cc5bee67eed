"""`mounts` of the spec, in the order they are made: the pseudo file systems, the pod's files, then the CRI's mounts.

CRI mounts are ordered by depth, so that one below another is made after it.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errdefs import InvalidArgument, NotFound
from agent.linux.mounts import MountInfo, parse_mountinfo
from agent.pods.spec.inputs import SpecInputs
from cri.api import api_pb2 as cri

_PSEUDO = ("nosuid", "noexec", "nodev")
_EXTRA_OPTIONS = frozenset({"noexec", "nodev", "nosuid"})


@dataclass(frozen=True)
class MountPlan:
    """`rootfs_propagation` is what the strongest CRI mount needs; empty for the engine's default."""

    mounts: list[dict[str, Any]]
    rootfs_propagation: str


def plan(inputs: SpecInputs) -> MountPlan:
    """Raises InvalidArgument and NotFound, naming the mount."""
    wanted = sorted(inputs.config.mounts, key=lambda mount: posixpath.normpath(mount.container_path).count("/"))
    asked = {posixpath.normpath(mount.container_path) for mount in wanted}
    made = [mount for mount in [*_pseudo(inputs), *_pod_files(inputs)] if mount["destination"] not in asked]
    propagation = ""
    host_mounts = None
    for mount in wanted:
        if mount.propagation != cri.PROPAGATION_PRIVATE and host_mounts is None:
            host_mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
        made.append(_cri_mount(mount, host_mounts or []))
        if mount.propagation == cri.PROPAGATION_BIDIRECTIONAL:
            propagation = "rshared"
        elif mount.propagation == cri.PROPAGATION_HOST_TO_CONTAINER and not propagation:
            propagation = "rslave"
    return MountPlan(made, propagation)


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _pseudo(inputs: SpecInputs) -> list[dict[str, Any]]:
    privileged = inputs.security.privileged
    access = "rw" if privileged else "ro"
    if inputs.host_network:
        # sysfs shows the netns of its mounter; without a netns of its own a container may only see the host's, bound in.
        sysfs = _mount("/sys", "bind", "/sys", *_PSEUDO, access, "rbind")
    else:
        sysfs = _mount("/sys", "sysfs", "sysfs", *_PSEUDO, access)
    return [
        _mount("/proc", "proc", "proc", *_PSEUDO),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_PSEUDO),
        sysfs,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *_PSEUDO, "relatime", access),
    ]


def _pod_files(inputs: SpecInputs) -> list[dict[str, Any]]:
    directory = inputs.sandbox.directory
    access = "ro" if inputs.security.readonly_rootfs else "rw"
    files = [
        _mount(f"/etc/{name}", "bind", f"{directory}/{name}", "rbind", "rprivate", access) for name in ("hostname", "hosts", "resolv.conf")
    ]
    shm = "/dev/shm" if inputs.host_ipc else f"{directory}/shm"
    return [*files, _mount("/dev/shm", "bind", shm, "rbind", "rprivate", "rw")]


def _cri_mount(mount: cri.Mount, host_mounts: list[MountInfo]) -> dict[str, Any]:
    where = f"config.mounts[{mount.container_path!r}]"
    if not mount.container_path or "\0" in mount.container_path:
        raise InvalidArgument(f"{where}: container_path must not be empty or hold NUL")
    if mount.HasField("image"):
        raise InvalidArgument(f"{where}: image volumes are not supported yet")
    if mount.uidMappings or mount.gidMappings:
        raise InvalidArgument(f"{where}: idmapped mounts are not supported yet")
    if not mount.host_path:
        raise InvalidArgument(f"{where}: host_path must not be empty")
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != cri.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"{where}: recursive_read_only needs readonly and private propagation")
    unknown = sorted(set(mount.mount_options) - _EXTRA_OPTIONS)
    if unknown:
        raise InvalidArgument(f"{where}: mount_options {unknown} are not among {sorted(_EXTRA_OPTIONS)}")
    try:
        # Resolved once, here: what the engine binds must be what was checked.
        source = os.path.realpath(mount.host_path, strict=True)
    except OSError as error:
        raise NotFound(f"{where}: host_path {mount.host_path!r} can't be used: {error.strerror}") from error
    propagation = _propagation(where, mount, source, host_mounts)
    access = ("rro" if mount.recursive_read_only else "ro") if mount.readonly else "rw"
    return _mount(posixpath.normpath(mount.container_path), "bind", source, "rbind", propagation, access, *mount.mount_options)


def _propagation(where: str, mount: cri.Mount, source: str, host_mounts: list[MountInfo]) -> str:
    match mount.propagation:
        case cri.PROPAGATION_PRIVATE:
            return "rprivate"
        case cri.PROPAGATION_HOST_TO_CONTAINER:
            if "shared:" not in (optional := _optional_fields(source, host_mounts)) and "master:" not in optional:
                raise InvalidArgument(f"{where}: {source} is on a private mount of the host: HOST_TO_CONTAINER can't work there")
            return "rslave"
        case cri.PROPAGATION_BIDIRECTIONAL:
            if "shared:" not in _optional_fields(source, host_mounts):
                raise InvalidArgument(f"{where}: {source} is not on a shared mount of the host: BIDIRECTIONAL can't work there")
            return "rshared"
        case other:
            raise InvalidArgument(f"{where}: propagation {other} is not one of the CRI")


def _optional_fields(source: str, host_mounts: list[MountInfo]) -> str:
    """Of the mount that `source` lies on: the deepest one, the last made of several at one place."""
    best, optional = -1, ""
    for mount in host_mounts:
        point = str(mount.mount_point)
        if (source == point or source.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, optional = len(point), mount.optional
    return optional
