"""A pod sandbox: what is recorded of it, and its state machine.

             RunPodSandbox              StopPodSandbox                ... all released
    (none) -----------------> READY -----------------> STOPPING -----------------------> STOPPED
                                |                         ^                                 |
                                |  a pin is gone          |  StopPodSandbox                 |  RemovePodSandbox
                                +---------------> LOST ---+                                 v
                                                                                         (none)

The kubelet sees READY as SANDBOX_READY and all the rest as SANDBOX_NOTREADY. Nobody asks a process: the state follows
from what was called and from the namespace pins alone (decisions.md 9). RunPodSandbox records a sandbox when all of it
is there; until then only the ledger knows it.
"""

from __future__ import annotations

import base64
import enum
import json
from dataclasses import dataclass, field, replace
from typing import Any

from agent.errdefs import DataLoss, FailedPrecondition
from cri.api import api_pb2 as cri


class SandboxState(enum.StrEnum):
    READY = "ready"
    LOST = "lost"
    STOPPING = "stopping"
    STOPPED = "stopped"


class SandboxEvent(enum.StrEnum):
    PIN_GONE = "pin gone"
    STOP = "stop"
    RELEASED = "released"


TRANSITIONS: dict[tuple[SandboxState, SandboxEvent], SandboxState] = {
    (SandboxState.READY, SandboxEvent.PIN_GONE): SandboxState.LOST,
    (SandboxState.READY, SandboxEvent.STOP): SandboxState.STOPPING,
    (SandboxState.LOST, SandboxEvent.PIN_GONE): SandboxState.LOST,
    (SandboxState.LOST, SandboxEvent.STOP): SandboxState.STOPPING,
    (SandboxState.STOPPING, SandboxEvent.PIN_GONE): SandboxState.STOPPING,
    (SandboxState.STOPPING, SandboxEvent.STOP): SandboxState.STOPPING,
    (SandboxState.STOPPING, SandboxEvent.RELEASED): SandboxState.STOPPED,
    (SandboxState.STOPPED, SandboxEvent.PIN_GONE): SandboxState.STOPPED,
    (SandboxState.STOPPED, SandboxEvent.STOP): SandboxState.STOPPING,
}
"""A pair that is not here can't happen; `SandboxRecord.after` raises."""


@dataclass(frozen=True)
class Pin:
    """A namespace kept alive by a bind mount."""

    path: str
    inode: int


@dataclass(frozen=True)
class SandboxRecord:
    """What a daemon restart needs to know of a sandbox. `pins` by OCI namespace type: network, ipc, uts."""

    id: str
    config: cri.PodSandboxConfig
    handler: str
    created_at: int
    directory: str
    cgroup_parent: str
    pins: dict[str, Pin] = field(default_factory=dict)
    ips: tuple[str, ...] = ()
    has_task: bool = False
    pid: int = 0
    state: SandboxState = SandboxState.READY

    def after(self, event: SandboxEvent) -> SandboxRecord:
        """The record after `event`.

        Raises:
            FailedPrecondition: the event can't happen in this state.
        """
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            raise FailedPrecondition(f"sandbox {self.id} is {self.state}: {event} is not possible")
        return replace(self, state=target)

    @property
    def name(self) -> str:
        """What must be unique among sandboxes: the pod and the attempt."""
        return sandbox_name(self.config.metadata)

    @property
    def namespace_options(self) -> cri.NamespaceOption:
        return self.config.linux.security_context.namespace_options

    @property
    def cri_state(self) -> cri.PodSandboxState:
        return cri.SANDBOX_READY if self.state is SandboxState.READY else cri.SANDBOX_NOTREADY

    def encode(self) -> bytes:
        body: dict[str, Any] = {
            "id": self.id,
            "config": base64.b64encode(self.config.SerializeToString()).decode(),
            "handler": self.handler,
            "created_at": self.created_at,
            "directory": self.directory,
            "cgroup_parent": self.cgroup_parent,
            "pins": {kind: [pin.path, pin.inode] for kind, pin in self.pins.items()},
            "ips": list(self.ips),
            "has_task": self.has_task,
            "pid": self.pid,
            "state": self.state,
        }
        return json.dumps(body).encode()

    @classmethod
    def decode(cls, data: bytes) -> SandboxRecord:
        """Raises DataLoss for bytes that `encode` can't have made."""
        try:
            body = json.loads(data)
            return cls(
                id=body["id"],
                config=cri.PodSandboxConfig.FromString(base64.b64decode(body["config"])),
                handler=body["handler"],
                created_at=body["created_at"],
                directory=body["directory"],
                cgroup_parent=body["cgroup_parent"],
                pins={kind: Pin(*pin) for kind, pin in body["pins"].items()},
                ips=tuple(body["ips"]),
                has_task=body["has_task"],
                pid=body["pid"],
                state=SandboxState(body["state"]),
            )
        except Exception as error:  # protobuf's DecodeError, JSON's, KeyError ...: all say that the record is torn
            raise DataLoss(f"sandbox record can't be read: {error}") from error

    def to_item(self) -> cri.PodSandbox:
        """The sandbox as ListPodSandbox shows it."""
        return cri.PodSandbox(
            id=self.id,
            metadata=self.config.metadata,
            state=self.cri_state,
            created_at=self.created_at,
            labels=self.config.labels,
            annotations=self.config.annotations,
            runtime_handler=self.handler,
        )


def sandbox_name(metadata: cri.PodSandboxMetadata) -> str:
    """Name, namespace, uid and attempt, joined by `_` as the kubelet and containerd do."""
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"
