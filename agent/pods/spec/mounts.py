"""`mounts` of the spec, in the order they are made: the pseudo file systems, then the pod's files and the CRI's mounts.

The latter are ordered by depth, so that one below another is made after it: a volume on /etc doesn't hide the pod's /etc/hosts.
A CRI mount takes the place of what would be mounted at its path; one on /dev, of all that would be mounted below /dev.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound
from agent.linux.mounts import MountInfo, parse_mountinfo
from agent.pods.spec.inputs import SpecInputs
from cri.api import api_pb2 as cri

_PSEUDO = ("nosuid", "noexec", "nodev")
_EXTRA_OPTIONS = frozenset({"noexec", "nodev", "nosuid"})
_RRO_UNSUPPORTED = "RROUnsupported"
"""https://github.com/kubernetes/cri-api, pkg/errors: what a message begins with, since Go's clients lose the class of an error."""
_CGROUP2_SHARED = frozenset({"nsdelegate", "memory_recursiveprot"})
"""Options of cgroup2 as a whole: a mount of it outside of a cgroup namespace that leaves them out takes them from the node."""


@dataclass(frozen=True)
class MountPlan:
    """`rootfs_propagation` is what the strongest CRI mount needs; empty for the engine's default."""

    mounts: list[dict[str, Any]]
    rootfs_propagation: str


def plan(inputs: SpecInputs, mountinfo: Path = Path("/proc/self/mountinfo")) -> MountPlan:
    """Blocks. Raises InvalidArgument and NotFound, naming the mount."""
    asked = {_target(mount) for mount in inputs.config.mounts}
    asked_for = {mount.propagation for mount in inputs.config.mounts if not mount.HasField("image")}
    host_mounts: list[MountInfo] = []
    if asked_for - {cri.PROPAGATION_PRIVATE} or _shares_cgroup2(inputs):  # else not: 10,000 mounts take 50 ms
        host_mounts = parse_mountinfo(mountinfo.read_bytes())
    pseudo = [
        mount
        for mount in _pseudo(inputs, host_mounts)
        if mount["destination"] not in asked and not ("/dev" in asked and mount["destination"].startswith("/dev/"))
    ]
    volumes = [mount for mount in _pod_files(inputs) if mount["destination"] not in asked]
    volumes += [_cri_mount(mount, inputs, host_mounts) for mount in inputs.config.mounts]
    volumes.sort(key=lambda mount: mount["destination"].count("/"))
    propagation = ""
    if cri.PROPAGATION_BIDIRECTIONAL in asked_for:
        propagation = "rshared"
    elif cri.PROPAGATION_HOST_TO_CONTAINER in asked_for:
        propagation = "rslave"
    return MountPlan(pseudo + volumes, propagation)


def _where(mount: cri.Mount) -> str:
    return f"config.mounts[{mount.container_path!r}]"


def _target(mount: cri.Mount) -> str:
    path = mount.container_path
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{_where(mount)}: container_path must be an absolute path without NUL")
    target = "/" + posixpath.normpath(path).lstrip("/")
    if target == "/":
        raise InvalidArgument(f"{_where(mount)}: container_path would hide the whole root file system")
    return target


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _pseudo(inputs: SpecInputs, host_mounts: list[MountInfo]) -> list[dict[str, Any]]:
    access = "rw" if inputs.security.privileged else "ro"
    shared = []
    if _shares_cgroup2(inputs):
        host = next((mount.super_options.split(",") for mount in host_mounts if str(mount.mount_point) == "/sys/fs/cgroup"), [])
        shared = [option for option in host if option in _CGROUP2_SHARED]
    return [
        _mount("/proc", "proc", "proc", *_PSEUDO),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_PSEUDO),
        # Never the host's, bound: "ro" holds for the mount itself, not for debugfs, bpf and the like below it.
        _mount("/sys", "sysfs", "sysfs", *_PSEUDO, access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *_PSEUDO, "relatime", access, *shared),
    ]


def _shares_cgroup2(inputs: SpecInputs) -> bool:
    """Whether it has no cgroup namespace of its own on v2 (`linux` decides): then its mount of cgroup2 is the node's."""
    return inputs.facts.cgroup_v2 and inputs.security.privileged


def _pod_files(inputs: SpecInputs) -> list[dict[str, Any]]:
    directory = inputs.sandbox.directory
    access = "ro" if inputs.security.readonly_rootfs else "rw"
    files = [
        _mount(f"/etc/{name}", "bind", f"{directory}/{name}", "rbind", "rprivate", access) for name in ("hostname", "hosts", "resolv.conf")
    ]
    shm = "/dev/shm" if inputs.host_ipc else f"{directory}/shm"
    return [*files, _mount("/dev/shm", "bind", shm, "rbind", "rprivate", "rw")]


def _cri_mount(mount: cri.Mount, inputs: SpecInputs, host_mounts: list[MountInfo]) -> dict[str, Any]:
    where = _where(mount)
    if mount.uidMappings or mount.gidMappings:
        raise InvalidArgument(f"{where}: idmapped mounts are not supported yet")
    unknown = sorted(set(mount.mount_options) - _EXTRA_OPTIONS)
    if unknown:
        raise InvalidArgument(f"{where}: mount_options {unknown} are not among {sorted(_EXTRA_OPTIONS)}")
    if mount.HasField("image"):
        volume = inputs.image_volumes[mount.image.image, mount.image_sub_path]
        return _mount(_target(mount), volume.type, volume.source, *volume.options, *mount.mount_options)
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidArgument(f"{where}: host_path {mount.host_path!r} is not an absolute path")
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != cri.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"{where}: recursive_read_only needs readonly and private propagation")
    if mount.recursive_read_only and not inputs.features.recursive_read_only:
        raise FailedPrecondition(f"{_RRO_UNSUPPORTED}: {where}: recursive_read_only: {inputs.features.no_recursive_read_only}")
    try:
        # Resolved once, here: what the engine binds must be what was checked.
        source = os.path.realpath(mount.host_path, strict=True)
    except OSError as error:
        raise NotFound(f"{where}: host_path {mount.host_path!r} can't be used: {error.strerror}") from error
    propagation = _propagation(where, mount, source, host_mounts)
    access = ("rro" if mount.recursive_read_only else "ro") if mount.readonly else "rw"
    return _mount(_target(mount), "bind", source, "rbind", propagation, access, *mount.mount_options)


def _propagation(where: str, mount: cri.Mount, source: str, host_mounts: list[MountInfo]) -> str:
    match mount.propagation:
        case cri.PROPAGATION_PRIVATE:
            return "rprivate"
        case cri.PROPAGATION_HOST_TO_CONTAINER:
            optional = _optional_fields(source, host_mounts)
            if "shared:" not in optional and "master:" not in optional:
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
