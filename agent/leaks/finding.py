"""What an audit finds, as values for a table, a log and a metric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

from agent.leaks.targets import Target

Owner = Literal["orlop", "containerd", "cri-o", "docker", "unknown"]
OWNERS: tuple[Owner, ...] = get_args(Owner)
Sure = Literal["certain", "likely", "can't be told"]


class State(StrEnum):
    LEAKED = "leaked"
    """It is on the node, and no ledger entry owns it."""
    MISSING = "missing"
    """A ledger entry owns it, and it is gone from the node."""
    PENDING = "pending"
    """A ledger entry owns it; its release failed and is tried again."""
    UNKNOWN = "unknown"
    """It could not be looked at, or whose it is can't be told. Never taken for a leak."""


class Thing(StrEnum):
    """What is found: the kinds of the ledger by their own names, and the parts that some of them consist of."""

    SHIM = "shim"
    RUNC_INIT = "runc_init"
    PROCESS = "process"
    TASK = "task"
    BUNDLE = "bundle"
    WORK_DIR = "work_dir"
    ENGINE_STATE = "engine_state"
    SOCKET = "socket"
    MOUNT = "mount"
    CGROUP = "cgroup"
    NETNS = "netns"
    IPCNS = "ipcns"
    UTSNS = "utsns"
    SHM = "shm"
    CNI = "cni"
    CHAIN = "chain"
    LOG = "log"
    FIFO = "fifo"
    EXEC = "exec"
    SANDBOX_DIR = "sandbox_dir"
    SNAPSHOT = "snapshot"
    INGEST = "ingest"
    LAYER_UNPACK = "layer_unpack"


@dataclass(frozen=True)
class Finding:
    """One resource that is not as the ledger says."""

    kind: Thing
    what: str
    """The path, process, cgroup or address."""
    owner: Owner
    """Whose it was; "unknown" where things of several runtimes look the same."""
    state: State
    why: str
    """A sentence: what it is, and how that was told."""
    releases: str
    """A sentence: what would release it."""
    since: float | None = None
    """Unix seconds of its making, or of the first failed release; None: the node doesn't say."""
    identity: str = ""
    """Tells it from a later one of the same name (a process' start time); not for people."""
    pins: str = ""
    """What can't be released before it is."""
    targets: tuple[Target, ...] = ()
    """What `reap` acts upon, in this order; nothing: that is not its business, or it can't."""
    stage: str = ""
    """How far a leaked init had got; see `agent.linux.procfs.init_stage`."""
    once: str = ""
    """The sandbox, container or path by which the ledger's journal has it if it was ours: it then is, though it bears nobody's name."""

    @property
    def sure(self) -> Sure:
        """How sure that state is."""
        if self.state is State.UNKNOWN:
            return "can't be told"
        return "likely" if self.owner == "unknown" else "certain"

    @property
    def key(self) -> tuple[Thing, str, str, State]:
        """Equal in two looks at the node if both found the same."""
        return self.kind, self.what, self.identity, self.state

    def to_json(self) -> dict[str, Any]:
        fields = ("kind", "what", "owner", "state", "sure", "since", "pins", "why", "releases")
        return {name: getattr(self, name) for name in fields}
