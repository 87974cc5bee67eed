"""Seccomp: the default profile, the kubelet's localhost profiles, or none.

The default profile allows the system calls that ordinary programs use and answers EPERM to the rest; some come with a
capability, or for some arguments only. It grants what Docker's and containerd's default profiles grant, because images
are built and tested against those.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection
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

_AF_ALG, _AF_VSOCK = 38, 40
"""Sockets that reach past the container: the kernel's crypto code, which has had many holes, and the hypervisor."""
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW* of mount, cgroup, UTS, IPC, user, PID and network: clone() may not make one."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_ENOSYS = 38
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
}
"""By machine: the native one, and those whose programs it runs as well."""


def profile(security: cri.LinuxContainerSecurityContext, granted: Collection[str]) -> dict[str, Any] | None:
    """The spec's `seccomp`, or None for unconfined. Without any word in the request a container is unconfined, which is
    what the kubelet means by it. `granted` are the container's capabilities (CAP_ names); some open further system calls.

    Raises:
        InvalidArgument: a profile of no known kind, or a localhost profile that isn't one.
        NotFound: a localhost profile that doesn't exist.
    """
    if not security.HasField("seccomp"):
        if security.seccomp_profile_path:
            raise InvalidArgument("seccomp_profile_path is what `seccomp` has replaced: it is not supported")
        return None
    match security.seccomp.profile_type:
        case cri.SecurityProfile.RuntimeDefault:
            return default_profile(granted)
        case cri.SecurityProfile.Localhost:
            return _localhost(security.seccomp.localhost_ref)
        case cri.SecurityProfile.Unconfined:
            return None
        case other:
            raise InvalidArgument(f"seccomp.profile_type {other} is not one of the CRI")


def default_profile(granted: Collection[str], machine: str = platform.machine()) -> dict[str, Any]:
    """The default profile for a container that has the capabilities `granted` (CAP_ names)."""

    def compare(index: int, value: int, operator: str, second: int = 0) -> dict[str, Any]:
        return {"index": index, "value": value, "valueTwo": second, "op": operator}

    def allow(names: list[str], *arguments: dict[str, Any]) -> dict[str, Any]:
        rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
        return {**rule, "args": list(arguments)} if arguments else rule

    rules = [allow(_ALWAYS)]
    # Three rules, since several conditions on one argument are alternatives to runc: two "not equal" would allow all.
    for family, operator in ((_AF_ALG, "SCMP_CMP_LT"), (_AF_ALG + 1, "SCMP_CMP_EQ"), (_AF_VSOCK, "SCMP_CMP_GT")):
        rules.append(allow(["socket"], compare(0, family, operator)))
    rules += [allow(["personality"], compare(0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES]
    rules += [allow(_BY_CAPABILITY[name]) for name in sorted(set(granted) & set(_BY_CAPABILITY))]
    if "CAP_SYS_ADMIN" not in granted:
        flags = 1 if machine == "s390x" else 0  # there, clone takes the stack first
        rules.append(allow(["clone"], compare(flags, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # clone3 hides its flags behind a pointer; ENOSYS makes the C library fall back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": _ARCHITECTURES.get(machine, []),
        "syscalls": rules,
    }


def _localhost(reference: str) -> dict[str, Any]:
    if not reference.startswith("/"):
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not an absolute path")
    path = Path(reference)
    try:
        if path.exists() and not path.is_file():
            raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not a file")
        loaded = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"seccomp.localhost_ref {reference!r} doesn't exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not a seccomp profile: {error}") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("defaultAction"), str):
        raise InvalidArgument(f"seccomp.localhost_ref {reference!r} is not a seccomp profile: not a JSON object with a defaultAction")
    return loaded
