"""A container: what is recorded of it, and its state machine.

             CreateContainer           StartContainer              Task.Start answered             init ended
    (none) -------------------> CREATED --------------> STARTING ----------------------> RUNNING ---------------> EXITED
                                   |                        |                                                       ^
                                   |                        +------- create or start failed, or it ended at once ---+
                                   |  RemoveContainer                                                               |
                                   +-----------------> (none) <-----------------------------------------------------+
                                                                             RemoveContainer

A task exists in the shim from STARTING until shortly after EXITED: the kubelet starts what it creates at once, so nothing
is won by creating the task earlier, and a created container can't leak a `runc init`.
"""

from __future__ import annotations

import base64
import enum
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agent.errdefs import DataLoss, FailedPrecondition
from agent.linux.mounts import Mount
from cri.api import api_pb2 as cri


class ContainerState(enum.StrEnum):
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"


class ContainerEvent(enum.StrEnum):
    START = "start"
    STARTED = "started"
    EXIT = "exit"


TRANSITIONS: dict[tuple[ContainerState, ContainerEvent], ContainerState] = {
    (ContainerState.CREATED, ContainerEvent.START): ContainerState.STARTING,
    (ContainerState.STARTING, ContainerEvent.STARTED): ContainerState.RUNNING,
    (ContainerState.STARTING, ContainerEvent.EXIT): ContainerState.EXITED,
    (ContainerState.RUNNING, ContainerEvent.EXIT): ContainerState.EXITED,
}
"""A pair that is not here can't happen; `ContainerRecord.after` raises."""

_CRI_STATES = {
    ContainerState.CREATED: cri.CONTAINER_CREATED,
    ContainerState.STARTING: cri.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.CONTAINER_EXITED,
}

REASON_COMPLETED = "Completed"
REASON_ERROR = "Error"
REASON_OOM = "OOMKilled"
REASON_START_ERROR = "StartError"
REASON_UNKNOWN = "Unknown"

START_ERROR_STATUS = 128
"""Exit code of a container that never ran, as containerd and Docker report it."""


@dataclass(frozen=True)
class ContainerRecord:
    """What a daemon restart needs to know of a container.

    `spec` is the OCI runtime spec as it goes into the bundle; `rootfs` the mounts that the shim makes; `log_path` is
    absolute, or empty when nothing is logged. `cgroups` is what /proc/PID/cgroup said of its init before that ran anything,
    which could have moved it; empty where the container isn't in a cgroup of this host. Times are Unix nanoseconds.
    """

    id: str
    sandbox_id: str
    config: cri.ContainerConfig
    image_id: str
    image_name: str
    spec: dict[str, Any]
    rootfs: tuple[Mount, ...]
    log_path: str
    created_at: int
    stop_signal: int
    state: ContainerState = ContainerState.CREATED
    started_at: int = 0
    finished_at: int = 0
    pid: int = 0
    cgroups: dict[str, str] = field(default_factory=dict)
    exit_code: int = 0
    oom: bool = False
    reason: str = ""
    message: str = ""

    def after(self, event: ContainerEvent, **changes: Any) -> ContainerRecord:
        """The record after `event`, with `changes` of its other fields.

        Raises:
            FailedPrecondition: the event can't happen in this state.
        """
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            raise FailedPrecondition(f"container {self.id} is {self.state}: {event} is not possible")
        return replace(self, state=target, **changes)

    @property
    def name(self) -> str:
        """What must be unique among the containers of a sandbox."""
        return f"{self.config.metadata.name}_{self.sandbox_id}_{self.config.metadata.attempt}"

    @property
    def cri_state(self) -> cri.ContainerState:
        return _CRI_STATES[self.state]

    def encode(self) -> bytes:
        body = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("config", "rootfs")
        }  # fmt: skip
        body["config"] = base64.b64encode(self.config.SerializeToString()).decode()
        body["rootfs"] = [asdict(mount) for mount in self.rootfs]
        return json.dumps(body, ensure_ascii=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> ContainerRecord:
        """Raises DataLoss for bytes that `encode` can't have made."""
        try:
            body = json.loads(data)
            body["config"] = cri.ContainerConfig.FromString(base64.b64decode(body["config"]))
            body["rootfs"] = tuple(Mount(**{**mount, "options": tuple(mount["options"])}) for mount in body["rootfs"])
            body["state"] = ContainerState(body["state"])
            return cls(**body)
        except Exception as error:  # protobuf's DecodeError, JSON's, KeyError ...: all say that the record is torn
            raise DataLoss(f"container record can't be read: {error}") from error

    def to_item(self) -> cri.Container:
        """The container as ListContainers shows it."""
        return cri.Container(
            id=self.id,
            pod_sandbox_id=self.sandbox_id,
            metadata=self.config.metadata,
            image=self.config.image,
            image_ref=self.image_id,
            image_id=self.image_id,
            state=self.cri_state,
            created_at=self.created_at,
            labels=self.config.labels,
            annotations=self.config.annotations,
        )
