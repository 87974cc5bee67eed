"""`linux` of the spec: namespaces, cgroup and resources, devices, masked paths, seccomp."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import Any

from agent.config.handlers import RuntimeHandler
from agent.errdefs import InvalidArgument, NotFound
from agent.pods.facts import NodeFacts
from agent.pods.spec import seccomp
from agent.pods.spec.capabilities import capabilities
from agent.pods.spec.inputs import SpecInputs
from cri.api import api_pb2 as cri

_MEMORY_MINIMUM = 4 << 20
"""Below 4 MiB no engine can start a process; the kernel's answer would be an OOM kill of runc."""
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,5}[KMG]B")
"""Part of the name of a cgroup file: hugetlb.2MB.max."""
_CPU_SHARES = range(1, 262_145)
"""The kernel takes 1 as 2 on v1; engines, which make a weight of v2 of them, don't all know that."""
_CPU_PERIODS = range(1_000, 1_000_001)
"""Microseconds; the kernel refuses others (Documentation/scheduler/sched-bwc.rst)."""


def build(inputs: SpecInputs, rootfs_propagation: str) -> dict[str, Any]:
    """Raises InvalidArgument and NotFound, naming the field."""
    security = inputs.security
    _check_apparmor(security)
    devices, rules = _devices(inputs)
    spec: dict[str, Any] = {
        "namespaces": _namespaces(inputs),
        "cgroupsPath": cgroups_path(inputs.sandbox.cgroup_parent, inputs.container_id, inputs.handler),
        "resources": {"devices": rules, **resources(inputs.config.linux.resources, inputs.facts, "config.linux.resources")},
        "devices": devices,
    }
    if rootfs_propagation:
        spec["rootfsPropagation"] = rootfs_propagation
    if not security.privileged:
        spec["maskedPaths"] = list(security.masked_paths)
        spec["readonlyPaths"] = list(security.readonly_paths)
        profile = seccomp.profile(security, capabilities(security, inputs.facts)["bounding"])
        if profile is not None:
            spec["seccomp"] = profile
    return spec


def _namespaces(inputs: SpecInputs) -> list[dict[str, str]]:
    spaces = [{"type": "mount"}]
    spaces += [{"type": kind, "path": pin.path} for kind, pin in inputs.sandbox.pins.items()]
    if inputs.pid_namespace is None:
        spaces.append({"type": "pid"})
    elif inputs.pid_namespace:
        spaces.append({"type": "pid", "path": inputs.pid_namespace})
    if inputs.facts.cgroup_v2 and not inputs.security.privileged:
        spaces.append({"type": "cgroup"})
    return spaces


def cgroups_path(parent: str, task_id: str, handler: RuntimeHandler) -> str:
    """For the cgroupfs driver a path, for systemd `slice:prefix:name` (runc's and crun's form)."""
    if handler.systemd_cgroup:
        return f"{parent.rstrip('/').rsplit('/', 1)[-1]}:cri-orlop:{task_id}"
    return f"{parent.rstrip('/')}/{task_id}"


def scope_properties(handler: RuntimeHandler) -> dict[str, str]:
    """Annotations by which runc and crun set properties of the container's scope (their `org.systemd.property.*`, in GVariant's text
    form). Without this one systemd would keep a scope that failed (an init that died while it was made, an OOM) until somebody
    resets it, thousands on a node that runs for months (runc#4040).
    """
    return {"org.systemd.property.CollectMode": "'inactive-or-failed'"} if handler.systemd_cgroup else {}


def resources(wanted: cri.LinuxContainerResources, facts: NodeFacts, field: str) -> dict[str, Any]:
    """CPU, memory, huge pages and v2's `unified`, for create and update; zero means: not set. Raises InvalidArgument, naming `field`."""
    made: dict[str, Any] = {}
    if cpu := _cpu(field, wanted):
        made["cpu"] = cpu
    if memory := _memory(field, wanted, facts):
        made["memory"] = memory
    for limit in wanted.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            raise InvalidArgument(f"{field}.hugepage_limits: {limit.page_size!r:.80} is not a size of pages such as 2MB")
    pages = [{"pageSize": limit.page_size, "limit": limit.limit} for limit in wanted.hugepage_limits]
    if pages and facts.hugetlb:
        made["hugepageLimits"] = pages
    if wanted.unified:
        if not facts.cgroup_v2:
            raise InvalidArgument(f"{field}.unified needs cgroup v2; this node has v1")
        if wrong := [name for name in wanted.unified if "/" in name or "." not in name]:
            raise InvalidArgument(f"{field}.unified: {wrong[0]!r} is not a file of a cgroup")
        made["unified"] = dict(wanted.unified)
    return made


def _cpu(field: str, wanted: cri.LinuxContainerResources) -> dict[str, Any]:
    if wanted.cpu_shares and wanted.cpu_shares not in _CPU_SHARES:
        raise InvalidArgument(f"{field}.cpu_shares {wanted.cpu_shares} is not between {_CPU_SHARES[0]} and {_CPU_SHARES[-1]}")
    if wanted.cpu_period and wanted.cpu_period not in _CPU_PERIODS:
        raise InvalidArgument(f"{field}.cpu_period {wanted.cpu_period} is not between 1 ms and 1 s, in microseconds")
    if 0 < wanted.cpu_quota < _CPU_PERIODS[0]:
        raise InvalidArgument(f"{field}.cpu_quota {wanted.cpu_quota} is below 1000 microseconds, the least that the kernel gives")
    cpu = {"shares": max(2, wanted.cpu_shares) if wanted.cpu_shares else 0, "quota": wanted.cpu_quota, "period": wanted.cpu_period}
    return {name: value for name, value in {**cpu, "cpus": wanted.cpuset_cpus, "mems": wanted.cpuset_mems}.items() if value}


def _memory(field: str, wanted: cri.LinuxContainerResources, facts: NodeFacts) -> dict[str, int]:
    """The OCI's `swap` is memory and swap together. Where nothing is said of it, it is the memory: Kubernetes doesn't swap."""
    limit, swap = wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes
    if limit < 0 or swap < -1:
        raise InvalidArgument(f"{field}: memory limit {limit} and swap limit {swap} must not be negative")
    if 0 < limit < _MEMORY_MINIMUM:
        raise InvalidArgument(f"{field}.memory_limit_in_bytes {limit} is below 4 MiB: nothing could start")
    if swap > 0 and not 0 < limit <= swap:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes {swap} includes the memory, whose limit is {limit}")
    memory = {"limit": limit} if limit else {}
    if (swap or limit) and facts.swap_accounting:
        memory["swap"] = swap or limit
    return memory


def _check_apparmor(security: cri.LinuxContainerSecurityContext) -> None:
    """Asking for more confinement than there is must not pass in silence; the runtime's default is none."""
    localhost = security.apparmor.profile_type == cri.SecurityProfile.Localhost or security.apparmor_profile.startswith("localhost/")
    if localhost and not security.privileged:
        raise InvalidArgument("security_context.apparmor: profiles of the node are not supported yet")


def _devices(inputs: SpecInputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The device nodes to make, and the cgroup rules: nothing but what the engine always allows, and what was asked for."""
    if inputs.security.privileged:
        return _host_devices(), [{"allow": True, "access": "rwm"}]
    devices: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for device in inputs.config.devices:
        where = f"config.devices[{device.container_path!r}]"
        if not device.container_path.startswith("/") or "\0" in device.container_path:
            raise InvalidArgument(f"{where}: container_path must be an absolute path without NUL")
        if not device.host_path.startswith("/") or "\0" in device.host_path:
            raise InvalidArgument(f"{where}: host_path {device.host_path!r} is not an absolute path")
        if set(device.permissions) - set("rwm"):
            raise InvalidArgument(f"{where}: permissions {device.permissions!r} are not among 'rwm'")
        for node in _nodes(where, device):
            devices.append(node)
            rules.append({
                "allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"],
                "access": device.permissions or "rwm",
            })  # fmt: skip
    return devices, rules


def _nodes(where: str, device: cri.Device) -> list[dict[str, Any]]:
    """One node, or those of a directory such as /dev/snd."""
    try:
        source = Path(os.path.realpath(device.host_path, strict=True))
        if not source.is_dir():
            node = _node(source, device.container_path)
            if node is None:
                raise InvalidArgument(f"{where}: host_path {device.host_path!r} is not a device")
            return [node]
        below = sorted(path for path in source.rglob("*") if not path.is_dir())
        nodes = [_node(path, posixpath.join(device.container_path, path.relative_to(source))) for path in below]
    except OSError as error:
        raise NotFound(f"{where}: host_path {device.host_path!r} can't be used: {error.strerror}") from error
    return [node for node in nodes if node is not None]


def _node(source: Path, target: str) -> dict[str, Any] | None:
    facts = source.stat()
    kind = "c" if stat.S_ISCHR(facts.st_mode) else "b" if stat.S_ISBLK(facts.st_mode) else ""
    if not kind:
        return None
    return {
        "path": target, "type": kind, "major": os.major(facts.st_rdev), "minor": os.minor(facts.st_rdev),
        "fileMode": stat.S_IMODE(facts.st_mode), "uid": facts.st_uid, "gid": facts.st_gid,
    }  # fmt: skip


_NOT_FOR_CONTAINERS = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})


def _host_devices() -> list[dict[str, Any]]:
    """Every device node of the host, for privileged containers; those that the engine makes itself are left to it."""
    found = []
    for directory, names, files in os.walk("/dev"):
        names[:] = sorted(name for name in names if not (directory == "/dev" and name in _NOT_FOR_CONTAINERS))
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_symlink() or name == "console":
                continue
            with contextlib.suppress(FileNotFoundError):  # unplugged meanwhile
                node = _node(path, str(path))
                if node is not None:
                    found.append(node)
    return found
