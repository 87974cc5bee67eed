"""The kinds of external resources, all in this one table, and the order in which they are released.

A row says where the kind is remembered and what it uses. What is used is released after its users, so the order between
kinds follows from the rows and is written nowhere else; `agent.runtime.v2.cleanup` orders the steps inside one TASK or SHIM.
The release function of a kind lives in layer 4 and is registered by `agent.daemon` (`agent.store.release`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from graphlib import TopologicalSorter


class Scope(StrEnum):
    """Which of the two databases remembers a kind."""

    BOOT = "boot"
    """In /run: gone with the boot, because the resource is."""
    DISK = "disk"
    """In /var/lib: the resource outlives a reboot."""


class Kind(StrEnum):
    """The values are stored: renaming one needs a migration."""

    TASK = "task"
    LOG = "log"
    FIFO = "fifo"
    EXEC = "exec"
    SHIM = "shim"
    CNI = "cni"
    NETNS = "netns"
    IPCNS = "ipcns"
    UTSNS = "utsns"
    SHM = "shm"
    CGROUP = "cgroup"
    SNAPSHOT = "snapshot"
    SANDBOX_DIR = "sandbox_dir"
    INGEST = "ingest"
    LAYER_UNPACK = "layer_unpack"


@dataclass(frozen=True)
class KindInfo:
    """One row of the table. `uses` names what must outlive a resource of this kind that has the same owner."""

    scope: Scope
    description: str
    uses: frozenset[Kind] = frozenset()
    sandbox_last: bool = False
    """Within the kind, what belongs to a container uses what belongs to its sandbox."""


KINDS: dict[Kind, KindInfo] = {
    Kind.TASK: KindInfo(
        Scope.BOOT,
        "a container in a shim: processes, engine state, cgroup, rootfs mount, bundle",
        # LOG is released after TASK, because the last output is written by a dying process; CNI, because invariant 6 wants
        # the network to outlive the last process in it.
        uses=frozenset({Kind.LOG, Kind.FIFO, Kind.SHIM, Kind.SNAPSHOT, Kind.CNI, Kind.SHM, Kind.CGROUP, Kind.SANDBOX_DIR})
        | frozenset({Kind.NETNS, Kind.IPCNS, Kind.UTSNS}),
        sandbox_last=True,  # its namespaces, or the whole VM, are the sandbox task's
    ),
    Kind.LOG: KindInfo(Scope.BOOT, "streams of a container in the log copier", uses=frozenset({Kind.FIFO})),
    Kind.FIFO: KindInfo(Scope.BOOT, "directory with the stdio FIFOs of a container"),
    # Its process ends with the container's others, and the shim forgets it with them: so nothing waits for it.
    Kind.EXEC: KindInfo(Scope.BOOT, "process that ExecSync runs in a container, and its FIFOs"),
    Kind.SHIM: KindInfo(
        Scope.BOOT,
        "shim process of a pod, its bundle and its socket",
        # A VM or a sentry is the shim's child and sits in the pod's network without a TASK of ours.
        uses=frozenset({Kind.CNI, Kind.NETNS, Kind.SANDBOX_DIR}),
    ),
    Kind.CNI: KindInfo(Scope.DISK, "network attachment of a pod: addresses, interfaces, rules", uses=frozenset({Kind.NETNS})),
    Kind.NETNS: KindInfo(Scope.BOOT, "pin of a pod's network namespace"),
    Kind.IPCNS: KindInfo(Scope.BOOT, "pin of a pod's IPC namespace"),
    Kind.UTSNS: KindInfo(Scope.BOOT, "pin of a pod's UTS namespace"),
    Kind.SHM: KindInfo(Scope.BOOT, "tmpfs for /dev/shm of a pod", uses=frozenset({Kind.SANDBOX_DIR})),
    Kind.CGROUP: KindInfo(Scope.BOOT, "pod cgroup that no kubelet made"),
    Kind.SNAPSHOT: KindInfo(Scope.DISK, "writable layer of a container"),
    Kind.SANDBOX_DIR: KindInfo(Scope.BOOT, "state files of a pod"),
    Kind.INGEST: KindInfo(Scope.DISK, "blob that is not complete yet"),
    Kind.LAYER_UNPACK: KindInfo(Scope.DISK, "layer directory that is not complete yet"),
}


def _release_order() -> tuple[Kind, ...]:
    users: dict[Kind, list[Kind]] = {kind: [user for user, info in KINDS.items() if kind in info.uses] for kind in KINDS}
    return tuple(TopologicalSorter(users).static_order())


RELEASE_ORDER: tuple[Kind, ...] = _release_order()
"""All kinds, users before what they use."""

POSITION: dict[Kind, int] = {kind: position for position, kind in enumerate(RELEASE_ORDER)}
"""Place of a kind in `RELEASE_ORDER`, as a sort key."""
