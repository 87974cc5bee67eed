"""Where the agent's resources are on the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.leaks import owners


class Runtime(Protocol):
    """What is needed of `agent.runtime.v2.config.RuntimeConfig`."""

    @property
    def state_dir(self) -> Path: ...
    @property
    def root_dir(self) -> Path: ...
    @property
    def address(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def shim_cgroup(self) -> str: ...
    @property
    def bundles(self) -> Path: ...
    @property
    def work_dirs(self) -> Path: ...
    @property
    def engine_root(self) -> Path: ...
    def socket_addresses(self, group: str) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Places:
    """Paths and names by which a resource is known for ours. The last five are others in tests only."""

    state_dir: Path
    """/run/orlop"""
    root_dir: Path
    """/var/lib/orlop"""
    netns_dir: Path
    bundles: Path
    work_dirs: Path
    engine_state: Path
    """The engines' root, namespace included: one directory per container."""
    address: str
    """What our shims have as `-address`."""
    shim_cgroup: str
    """Below it, one leaf per shim."""
    shim_sockets: Callable[[str], Sequence[Path]]
    """The sockets of the shim that was started with an id."""
    pod_cgroup: str
    """The cgroup parent of pods whose client names none."""
    leases: Path = Path("/var/lib/cni/networks")
    """host-local's directory."""
    results: Path = Path("/var/lib/cni/results")
    """libcni's cache."""
    proc: Path = Path("/proc")
    cgroup_root: Path = Path("/sys/fs/cgroup")
    other_runtimes: tuple[owners.Runtime, ...] = owners.KNOWN
    """Where other runtimes may be."""

    @classmethod
    def of(cls, runtime: Runtime, *, netns_dir: Path, pod_cgroup: str) -> Places:
        """The places of an agent with this configuration."""
        return cls(
            state_dir=runtime.state_dir,
            root_dir=runtime.root_dir,
            netns_dir=netns_dir,
            bundles=runtime.bundles,
            work_dirs=runtime.work_dirs,
            engine_state=runtime.engine_root / runtime.namespace,
            address=runtime.address,
            shim_cgroup=runtime.shim_cgroup,
            shim_sockets=lambda shim: [Path(address.removeprefix("unix://")) for address in runtime.socket_addresses(shim)],
            pod_cgroup=pod_cgroup,
        )

    @property
    def sandboxes(self) -> Path:
        return self.state_dir / "sandboxes"

    @property
    def pins(self) -> Path:
        """Of IPC and UTS namespaces; those of network namespaces are in `netns_dir`."""
        return self.state_dir / "namespaces"

    @property
    def fifos(self) -> Path:
        return self.state_dir / "io"

    @property
    def snapshots(self) -> Path:
        return self.root_dir / "snapshots" / "containers"

    @property
    def unpacks(self) -> Path:
        return self.root_dir / "snapshots" / "unpack"

    @property
    def ingests(self) -> Path:
        return self.root_dir / "content" / "ingest"
