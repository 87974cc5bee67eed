"""Where the v2 manager keeps things, and what it tells shims about the agent.

The layout is containerd's, below directories of the agent's own, so that node tools that know the one know the other:

    <state>/io.containerd.runtime.v2.task/<namespace>/<id>     bundles; tmpfs, gone with the boot
    <root>/io.containerd.runtime.v2.task/<namespace>/<id>      work dirs
    <state>/runc/<namespace>/<id>                              the engine's own state of a container
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from pathlib import Path

_PLUGIN = "io.containerd.runtime.v2.task"
SOCKET_DIR = "/run/containerd/s"
"""Where runc shims put their sockets, whoever started them: the path is compiled in (runtime-v2 section 2)."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings of one `TaskManager`."""

    state_dir: Path
    """/run/orlop"""
    root_dir: Path
    """/var/lib/orlop"""
    address: str
    """The agent's gRPC socket. Shims hash it into the name of their own socket, which keeps ours apart from containerd's."""
    ttrpc_address: str
    """Where shims send events. They keep it for life, so it has to be the same path after every restart."""
    publish_binary: str
    """An executable; shims of containerd 1.x want to know one."""
    shim_cgroup: str
    """The cgroup below which every shim gets a leaf of its own: outside of the daemon's unit and of every pod (decisions.md 12)."""
    helper_cgroup: str = ""
    """Of short-lived helpers (`shim delete`, the engine's own delete). Empty: the daemon's."""
    namespace: str = "k8s.io"
    debug: bool = False

    @property
    def bundles(self) -> Path:
        return self.state_dir / _PLUGIN / self.namespace

    @property
    def work_dirs(self) -> Path:
        return self.root_dir / _PLUGIN / self.namespace

    @property
    def engine_root(self) -> Path:
        """`Options.root`: a directory of the agent's own, or its containers' state would mix with containerd's."""
        return self.state_dir / "runc"

    def shim_leaf(self, shim_id: str) -> str:
        """The cgroup of one shim."""
        return f"{self.shim_cgroup.rstrip('/')}/{shim_id}"

    def socket_addresses(self, group: str) -> tuple[str, str]:
        """Where a runc shim for `group` listens, also if its `start` never got to print it: its service, and with `-debug`, from
        2.0 on, its profiler."""
        service = posixpath.normpath(posixpath.join(self.address, self.namespace, group))
        return _socket(service), _socket(f"{service}/debug")


def _socket(name: str) -> str:
    return f"unix://{SOCKET_DIR}/{hashlib.sha256(name.encode()).hexdigest()}"
