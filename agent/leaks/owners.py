"""Whose a thing can be: the other runtimes on the node, known by their sockets, and by the processes that they started.

A runtime is found where its release puts it, and wherever a shim says that it is (`-address`). Whether a thing of one
is alive, its CRI is asked (`foreign`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.leaks import commands
from agent.leaks.finding import Owner
from agent.linux.procfs import ProcessInfo

TASKS = "io.containerd.runtime.v2.task"
CRI = "io.containerd.grpc.v1.cri"
"""Below a containerd's state: what its CRI keeps of pods and containers."""
NAMESPACE = "k8s.io"
"""What the CRI of a containerd lists is in this one."""
ID = re.compile(r"[0-9a-f]{64}")
"""What CRI runtimes call sandboxes and containers."""
KEY = re.compile(r"\.?[0-9a-f]{16,64}")
"""What we call directories of things that the ledger has; with a dot before it, one that is on its way out."""
_CGROUPS: tuple[tuple[str, Owner], ...] = (("cri-containerd-", "containerd"), ("crio-", "cri-o"), ("docker-", "docker"))
"""Beginnings of the names of systemd scopes."""


@dataclass(frozen=True)
class Runtime:
    """One that serves, or served, CRI on this node."""

    owner: Owner
    socket: Path
    state: Path | None = None
    """Below it are bundles, engine state and directories of pods, as containerd has them; None: it has no such place."""

    @property
    def bundles(self) -> Path | None:
        """One directory per sandbox or container."""
        return self.state / TASKS / NAMESPACE if self.state else None

    def __str__(self) -> str:
        return f"{self.owner} ({self.socket})"


KNOWN = (
    Runtime("containerd", Path("/run/containerd/containerd.sock"), Path("/run/containerd")),
    Runtime("containerd", Path("/run/k3s/containerd/containerd.sock"), Path("/run/k3s/containerd")),
    Runtime("cri-o", Path("/run/crio/crio.sock")),
    Runtime("docker", Path("/run/cri-dockerd.sock")),
)
"""Where releases of runtimes put themselves."""
CRIO = KNOWN[2]


def discover(processes: Iterable[ProcessInfo], known: Iterable[Runtime], own_address: str, proc: Path) -> list[Runtime]:
    """The other runtimes there are signs of. Blocks."""
    found = {runtime.socket: runtime for runtime in known if os.path.lexists(runtime.socket) or _has_bundles(runtime)}
    for process in processes:
        shim = commands.shim(process.cmdline)
        if shim is not None and shim.namespace == NAMESPACE and shim.address not in ("", own_address):
            socket = Path(os.path.realpath(shim.address.removeprefix("unix://")))
            if socket not in found or found[socket].state is None:
                found[socket] = Runtime(_owner(socket), socket, _state_of(process.pid, proc) or socket.parent)
        elif (monitor := commands.monitor(process.cmdline)) is not None and not monitor.podman:
            found.setdefault(CRIO.socket, CRIO)
    return list(found.values())


def of_cgroup(name: str) -> Owner:
    """Whose a container's cgroup is, by its last name; a bare id can be anybody's."""
    return next((owner for beginning, owner in _CGROUPS if name.startswith(beginning)), "unknown")


def _owner(socket: Path) -> Owner:
    if "containerd" in socket.name:
        return "containerd"
    return "orlop" if "orlop" in str(socket) else "unknown"


def _state_of(pid: int, proc: Path) -> Path | None:
    """A shim works in its bundle, whose place tells where the runtime's others are."""
    try:
        bundle = Path(os.readlink(f"{proc}/{pid}/cwd"))
    except OSError:
        return None
    return bundle.parents[2] if bundle.parts[-3:-1] == (TASKS, NAMESPACE) else None


def _has_bundles(runtime: Runtime) -> bool:
    if runtime.bundles is None:
        return False
    try:
        return bool(os.listdir(runtime.bundles))
    except OSError:
        return False
