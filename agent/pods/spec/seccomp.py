"""Seccomp: the default profile, the kubelet's localhost profiles, or none.

The default profile allows the system calls that ordinary programs use and answers EPERM to the rest; some come with a
capability, or for some arguments only. It grants what Docker's and containerd's default profiles grant, because images
are built and tested against those.
"""

from __future__ import annotations

import json
import platform
from importlib import resources
from pathlib import Path
from typing import Any

from agent.errdefs import InvalidArgument, NotFound
from cri.api import api_pb2 as cri

_ALWAYS = (resources.files(__package__) / "seccomp_allowed.txt").read_text().split()

_BY_CAPABILITY = {
    "CAP_BPF": ["bpf"],
    "CAP_DAC_READ_SEARCH": ["open_by_handle_at"],
    "CAP_PERFMON": ["perf_event_open"],
    "CAP_SYS_ADMIN": [
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount",
        "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname",
        "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
    ],
    "CAP_SYS_BOOT": ["reboot"],
    "CAP_SYS_CHROOT": ["chroot"],
    "CAP_SYS_MODULE": ["delete_module", "init_module", "finit_module"],
    "CAP_SYS_NICE": ["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"],
    "CAP_SYS_PACCT": ["acct"],
    "CAP_SYS_PTRACE": ["kcmp", "pidfd_getfd", "process_madvise"],
    "CAP_SYS_RAWIO": ["iopl", "ioperm"],
    "CAP_SYS_TIME": ["settimeofday", "stime", "clock_settime", "clock_settime64"],
    "CAP_SYS_TTY_CONFIG": ["vhangup"],
    "CAP_SYSLOG": ["syslog"],
}  # fmt: skip

_AF_VSOCK = 40
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW* of mount, cgroup, UTS, IPC, user, PID and network: clone() may not make one."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_ENOSYS = 38


def profile(security: cri.LinuxContainerSecurityContext) -> dict[str, Any] | None:
    """The spec's `seccomp`, or None for unconfined. Without any word in the request a container is unconfined, which is
    what the kubelet means by it.

    Raises:
        InvalidArgument, NotFound: a localhost profile that can't be read.
    """
    if not security.HasField("seccomp"):
        return None
    match security.seccomp.profile_type:
        case cri.SecurityProfile.RuntimeDefault:
            return default_profile(capabilities_of(security))
        case cri.SecurityProfile.Localhost:
            return _localhost(security.seccomp.localhost_ref)
        case _:
            return None


def capabilities_of(security: cri.LinuxContainerSecurityContext) -> frozenset[str]:
    """The capabilities that open further system calls: those that were added by name."""
    names = security.capabilities.add_capabilities
    added = {f"CAP_{name.upper().removeprefix('CAP_')}" for name in names}
    dropped = {f"CAP_{name.upper().removeprefix('CAP_')}" for name in security.capabilities.drop_capabilities}
    everything = set(_BY_CAPABILITY) if "CAP_ALL" in added else set()
    by_default = {"CAP_SYS_CHROOT"} if "CAP_ALL" not in dropped else set()
    return frozenset((added | everything | by_default) - dropped)


def default_profile(capabilities: frozenset[str]) -> dict[str, Any]:
    """The default profile for a container that has `capabilities` (CAP_ names)."""

    def compare(index: int, value: int, operator: str, second: int = 0) -> dict[str, Any]:
        return {"index": index, "value": value, "valueTwo": second, "op": operator}

    def allow(names: list[str], *arguments: dict[str, Any]) -> dict[str, Any]:
        rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
        return {**rule, "args": list(arguments)} if arguments else rule

    rules = [allow(_ALWAYS), allow(["socket"], compare(0, _AF_VSOCK, "SCMP_CMP_NE"))]
    rules += [allow(["personality"], compare(0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES]
    rules += [allow(_BY_CAPABILITY[name]) for name in sorted(capabilities & set(_BY_CAPABILITY))]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(allow(["clone"], compare(0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # clone3 hides its flags behind a pointer; ENOSYS makes the C library fall back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": _architectures(),
        "syscalls": rules,
    }


def _architectures() -> list[str]:
    return {
        "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        "ppc64le": ["SCMP_ARCH_PPC64LE"],
        "riscv64": ["SCMP_ARCH_RISCV64"],
    }.get(platform.machine(), [])


def _localhost(reference: str) -> dict[str, Any]:
    if not reference.startswith("/"):
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not an absolute path")
    try:
        loaded = json.loads(Path(reference).read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"seccomp.localhost_ref {reference!r} doesn't exist") from error
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not a seccomp profile: {error}") from error
    if not isinstance(loaded, dict):
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not a seccomp profile: not a JSON object")
    return loaded
