"""What is measured, as a table: one row here is one row of the report. The families fill it, `report` and `picture` print it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["s", "B", "B/s", "1/s"]
"""Seconds, bytes, bytes per second, pieces per second."""


@dataclass(frozen=True)
class Measurement:
    """One number that every socket has samples of. `family` is the file that takes them."""

    key: str
    family: str
    title: str
    """For people; numbers of the plan in braces."""
    unit: Unit = "s"

    @property
    def more_is_better(self) -> bool:
        return self.unit in {"B/s", "1/s"}


_ROWS = (
    ("pods", "RunPodSandbox", "RunPodSandbox", "s"),
    ("pods", "CreateContainer", "CreateContainer", "s"),
    ("pods", "StartContainer", "StartContainer", "s"),
    ("pods", "pod_start", "pod start: the three above", "s"),
    ("pods", "StopContainer", "StopContainer", "s"),
    ("pods", "StopPodSandbox", "StopPodSandbox", "s"),
    ("pods", "pod_stop", "pod stop: the two above", "s"),
    ("pods", "RemoveContainer", "RemoveContainer", "s"),
    ("pods", "RemovePodSandbox", "RemovePodSandbox", "s"),
    ("pods", "pod_removal", "pod removal: the two above", "s"),
    ("pods", "pod_end", "pod stop and removal", "s"),
    ("pods", "stack_cpu", "CPU of the whole stack per pod", "s"),
    ("pods", "daemon_cpu", "CPU of the daemon itself per pod", "s"),
    ("pods", "daemon_memory_before", "memory of the daemon and its helpers, before", "B"),
    ("pods", "daemon_memory_after", "memory of the daemon and its helpers, {pods} pods later", "B"),
    ("parallel", "starts", "pods started per second, {parallel} at a time", "1/s"),
    ("parallel", "ends", "pods stopped and removed per second, {parallel} at a time", "1/s"),
    ("parallel", "pod_memory", "memory of the stack per pod", "B"),
    ("lists", "ListPodSandbox", "ListPodSandbox, {containers} containers", "s"),
    ("lists", "ListContainers", "ListContainers, {containers} containers", "s"),
    ("lists", "PodSandboxStatus", "PodSandboxStatus", "s"),
    ("lists", "ContainerStatus", "ContainerStatus", "s"),
    ("lists", "ListContainerStats", "ListContainerStats, {containers} containers", "s"),
    ("lists", "ListPodSandboxStats", "ListPodSandboxStats, {containers} containers", "s"),
    ("lists", "ListPodSandboxMetrics", "ListPodSandboxMetrics, {containers} containers", "s"),
    ("lists", "Status", "Status", "s"),
    ("lists", "ListImages", "ListImages", "s"),
    ("lists", "ImageFsInfo", "ImageFsInfo", "s"),
    ("restart", "restart", "restart with {containers} containers, until all are listed as running", "s"),
    ("exec", "exec_alone", "ExecSync alone", "s"),
    ("exec", "exec_many", "ExecSync, {execs} at a time, until all have ended", "s"),
    ("logs", "log_short", "log, lines of 100 bytes", "B/s"),
    ("logs", "log_long", "log, lines of 4 KiB", "B/s"),
    ("images", "pull", "pull and unpack", "s"),
)  # fmt: skip


def table(numbers: Mapping[str, int]) -> list[Measurement]:
    """All measurements; `numbers` are the plan's, for the titles."""
    rows = (Measurement(key, family, title, unit) for family, key, title, unit in _ROWS)  # type: ignore[arg-type]  # a Unit
    return [replace(row, title=row.title.format_map(numbers)) for row in rows]
