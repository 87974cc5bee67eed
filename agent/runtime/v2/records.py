"""What the ledger remembers of shims and tasks: enough to take them down after a restart, without anything else.

Written with `Ledger.hold` by `manager`; read by `load` and by the release functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from agent.config.handlers import RuntimeHandler
from agent.errdefs import DataLoss
from agent.linux import cgroupfs
from agent.linux.processes import Identity
from agent.runtime.v2.bootstrap import Bootstrap

R = TypeVar("R", "ShimRecord", "TaskRecord")
Data = Mapping[str, Any]


@dataclass(frozen=True)
class ShimRecord:
    """A shim process. `id` is the bundle that it was started in: the sandbox's, or its container's where shims don't group."""

    id: str
    sandbox: str
    handler: RuntimeHandler
    pinned: bool
    """Started in the sandbox's own bundle, without a task in it: it stays when its last container goes."""
    binary: str
    address: str = ""
    version: int = 0
    protocol: str = ""
    pid: int = 0
    start_time: int = 0

    @property
    def identity(self) -> Identity | None:
        """The process, once it is known."""
        return Identity(self.pid, self.start_time) if self.pid else None

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.version, self.address, self.protocol)

    def listening(self, bootstrap: Bootstrap, identity: Identity | None) -> ShimRecord:
        """With what its start told."""
        return replace(
            self,
            address=bootstrap.address,
            version=bootstrap.version,
            protocol=bootstrap.protocol,
            pid=identity.pid if identity else 0,
            start_time=identity.start_time if identity else 0,
        )

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Data) -> ShimRecord:
        """Raises DataLoss: not such a record."""
        return replace(_from_data(cls, data), handler=_handler(data))


@dataclass(frozen=True)
class TaskRecord:
    """A container in a shim, or, if `id` is `sandbox`, the sandbox itself as a task."""

    id: str
    sandbox: str
    shim: str
    """`ShimRecord.id` of the shim that it is, or was, in."""
    binary: str
    """The shim's, for `shim delete`."""
    engine: str
    """The OCI engine's; empty where the shim drives none on this host."""
    engine_root: str
    """The directory with the engine's state, namespace included; empty as above."""
    systemd_cgroup: bool
    cgroup: str
    """Path relative to each hierarchy; empty if the spec names none."""
    create: bool = False
    """Create was about to be sent, so that there may be something of it. Without, `shim delete` has nothing to do."""
    pid: int = 0
    start_time: int = 0
    own_shim: Mapping[str, Any] | None = None
    """The `ShimRecord` of a shim that serves this task alone, and has no ledger entry of its own."""

    @property
    def init(self) -> Identity | None:
        """The container's first process, once Create has told it."""
        return Identity(self.pid, self.start_time) if self.pid else None

    @property
    def is_sandbox(self) -> bool:
        return self.id == self.sandbox

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Data) -> TaskRecord:
        """Raises DataLoss: not such a record."""
        return _from_data(cls, data)


def cgroup_of(spec: Mapping[str, Any], container_id: str) -> str:
    """The cgroup that a spec's `linux.cgroupsPath` names, as a path relative to each hierarchy.

    Empty if it names none, or one that isn't the container's alone: everything in it is going to be killed.
    """
    path: str = spec.get("linux", {}).get("cgroupsPath", "")
    match path.split(":"):
        case [slice_name, prefix, name]:  # the form of the systemd driver
            path = f"{cgroupfs.slice_path(slice_name or 'system.slice')}/{prefix}-{name}.scope"
        case _:
            pass
    return path if path.startswith("/") and container_id in path.rsplit("/", 1)[-1] else ""


def _from_data(cls: type[R], data: Data) -> R:
    """The fields that this version knows; what a newer or older one wrote beside them is left out, or has its default."""
    try:
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})
    except TypeError as error:
        raise DataLoss(f"not a {cls.__name__}: {error}") from error


def _handler(data: Data) -> RuntimeHandler:
    try:
        return RuntimeHandler(**data["handler"])
    except (TypeError, KeyError) as error:
        raise DataLoss(f"not a runtime handler: {error}") from error
