"""What this node allows, read once at start; Status and the spec builder say and respect it.

Nodes differ: a container runtime in a container may lack CAP_SYS_RESOURCE, old kernels lack hugetlb or swap accounting.
Asking for what the node forbids makes the engine fail with texts like "can't get final child's PID", so the agent asks
for less and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Linux capabilities by bit number (include/uapi/linux/capability.h), without their CAP_ prefix."""


@dataclass(frozen=True)
class NodeFacts:
    """`oom_score_floor` is the lowest oom_score_adj that a process here may have; -1000 where nothing forbids it."""

    capabilities: frozenset[str]
    oom_score_floor: int
    nofile_limit: int
    cgroup_v2: bool
    hugetlb: bool
    swap_accounting: bool
    apparmor: bool
    restrictions: tuple[str, ...] = ()


def read(*, cgroup_v2: bool, proc: Path = Path("/proc"), sys: Path = Path("/sys"), nofile_limit: int) -> NodeFacts:
    """Look at the node; blocking, at start only. `nofile_limit` is this process's hard RLIMIT_NOFILE."""
    status = (proc / "self/status").read_text()
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")), 16)
    capabilities = frozenset(name for bit, name in enumerate(CAPABILITIES) if bounding >> bit & 1)
    restrictions = []
    floor = -1000
    if "SYS_RESOURCE" not in capabilities:
        # Without it the kernel lets nobody go below the lowest value that a privileged ancestor set; that value can't be
        # read, but the own one is never below it.
        floor = int((proc / "self/oom_score_adj").read_text())
        restrictions.append(
            f"no CAP_SYS_RESOURCE: an oom_score_adj below {floor} can't be set and is raised to it; open files can't exceed {nofile_limit}"
        )
    cgroup = sys / "fs/cgroup"
    if cgroup_v2:
        hugetlb = "hugetlb" in (cgroup / "cgroup.controllers").read_text().split()
        # Told by the kernel's build and command line: memory.swap.max itself is only in cgroups with the memory controller.
        swap = (proc / "swaps").exists() and "swapaccount=0" not in (proc / "cmdline").read_text().split()
    else:
        hugetlb = (cgroup / "hugetlb").is_dir()
        swap = (cgroup / "memory/memory.memsw.limit_in_bytes").exists()
    if not hugetlb:
        restrictions.append("no hugetlb cgroup controller: huge page limits are not enforced")
    if not swap:
        restrictions.append("no swap accounting: swap limits are not enforced")
    apparmor_enabled = sys / "module/apparmor/parameters/enabled"
    apparmor = apparmor_enabled.exists() and apparmor_enabled.read_text().startswith("Y")
    return NodeFacts(capabilities, floor, nofile_limit, cgroup_v2, hugetlb, swap, apparmor, tuple(restrictions))
