"""Sysctls of a pod, refused or sorted by when they can be written (decisions.md 6).

Nobody validates for us: without a pause process the agent writes them itself, and a key whose namespace is the host's
would change the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.errdefs import InvalidArgument

_IPC_KEYS = frozenset({
    "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni",
})  # fmt: skip
_UTS_KEYS = frozenset({"kernel.hostname", "kernel.domainname"})

DEFAULTS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
"""As containerd's enable_unprivileged_ports and _icmp: without user namespaces there is nothing to protect in a pod's own netns."""


@dataclass(frozen=True)
class Sysctls:
    """`at_creation` are written as the namespaces are made; `of_interfaces` exist only after CNI ADD. Names are dotted."""

    at_creation: dict[str, str]
    of_interfaces: dict[str, str]

    @classmethod
    def split(cls, wanted: Mapping[str, str], *, host_network: bool, host_ipc: bool) -> Sysctls:
        """Check and sort `wanted`, with the defaults for a pod's own network.

        Raises:
            InvalidArgument: a key that is not of the pod's own namespaces.
        """
        early = {} if host_network else dict(DEFAULTS)
        late: dict[str, str] = {}
        for raw, value in wanted.items():
            path = _path(raw)
            if len(path) < 2 or any(part in {"", ".", ".."} for part in path) or not raw.isprintable() or not value.isprintable():
                raise InvalidArgument(f"config.linux.sysctls: {raw!r} is not a sysctl")
            key = ".".join(part.replace(".", "/") for part in path)
            if path[0] == "net":
                if host_network:
                    raise InvalidArgument(f"config.linux.sysctls: {raw!r} would change the host: the pod uses the host's network")
                on_interface = len(path) > 4 and path[2] in ("conf", "neigh") and path[3] not in ("all", "default", "lo")
                (late if on_interface else early)[key] = value
            elif key in _IPC_KEYS or key.startswith("fs.mqueue."):
                if host_ipc:
                    raise InvalidArgument(f"config.linux.sysctls: {raw!r} would change the host: the pod uses the host's IPC namespace")
                early[key] = value
            elif key in _UTS_KEYS:
                raise InvalidArgument(f"config.linux.sysctls: {raw!r} is set by config.hostname")
            else:
                raise InvalidArgument(f"config.linux.sysctls: {raw!r} is not namespaced: it would change the host")
        return cls(early, late)


def _path(name: str) -> list[str]:
    """The components of a sysctl's file below /proc/sys. As in sysctl(8), the first of `.` and `/` in the name separates them
    and stands for the other one inside of them: net.ipv4.conf.eth0/5.forwarding is of the interface eth0.5."""
    if next((character for character in name if character in "./"), "") == ".":
        name = name.translate(str.maketrans("./", "/."))
    return name.split("/")
