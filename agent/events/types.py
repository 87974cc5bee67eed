"""The events. Ids are container ids; times are Unix nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_STATUS = 255
"""The exit status when the shim died with it: nobody knows the real one (`shim delete` invents 137)."""


@dataclass(frozen=True)
class Exit:
    """How a process ended.

    `status` is 0-255, 128 + signal for signals. `reason` is empty, or "Unknown" when the status is lost; `message` then
    says why, for people.
    """

    status: int
    exited_at: int
    pid: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class TaskExit:
    """A container's init ended; its log is not necessarily drained yet."""

    container_id: str
    exit: Exit


@dataclass(frozen=True)
class TaskDelete:
    """All that the shim held for the container is released: engine state, rootfs mount, bundle."""

    container_id: str


@dataclass(frozen=True)
class TaskOOM:
    """The kernel killed a process of the container's cgroup; may come several times, and before or after the exit."""

    container_id: str


Event = TaskExit | TaskDelete | TaskOOM
