"""Rows of /proc, parsed. Reading only; blocks, so callers are in a thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.linux import cgroupfs, files


@dataclass(frozen=True)
class Identity:
    """A process, also across a restart of ours: a pid alone is reused, the pair isn't within one boot."""

    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/PID/stat (proc(5))."""


@dataclass(frozen=True)
class ProcessInfo:
    """One row of the process table."""

    pid: int
    ppid: int
    comm: str
    cmdline: tuple[str, ...]
    """Empty for kernel threads and zombies."""
    state: str
    """One letter, proc(5)."""
    start_time: int
    cgroups: Mapping[str, str]
    """Controllers to path, see `cgroupfs.parse_membership`."""


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that the agent looks at."""

    comm: str
    state: str
    ppid: int
    start_time: int


_STAGES = {"runc:[0:PARENT]": "parent", "runc:[1:CHILD]": "child", "runc:[2:INIT]": "init"}


def parse_stat(data: bytes) -> Stat:
    """/proc/PID/stat (proc(5)). The name may hold spaces and parentheses: it ends at the last one.

    Raises:
        ValueError: not such a line.
    """
    head, bracket, tail = data.rpartition(b")")
    fields = tail.split()
    if not bracket or len(fields) < 20:
        raise ValueError(f"not a line of /proc/PID/stat: {data!r}")
    return Stat(os.fsdecode(head.partition(b"(")[2]), fields[0].decode(), int(fields[1]), int(fields[19]))


def pids(proc: Path) -> list[int]:
    """The numbers of all processes, ascending."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def scan(proc: Path) -> Iterator[ProcessInfo]:
    """The process table, row by row, by pid. What ends while we look is left out."""
    for pid in pids(proc):
        # A process that ends meanwhile is ENOENT at open and ESRCH at read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = parse_stat(files.read(f"{proc}/{pid}/stat"))
            arguments = files.read(f"{proc}/{pid}/cmdline")
            cgroups = cgroupfs.parse_membership(files.read(f"{proc}/{pid}/cgroup"))
            yield ProcessInfo(pid, stat.ppid, stat.comm, split_arguments(arguments), stat.state, stat.start_time, cgroups)


def init_stage(comm: str) -> str:
    """How far the process has got that is to become a container's, by the name that runc gives it (libcontainer's nsexec.c)."""
    return _STAGES.get(comm, "crun" if comm == "crun" else "unknown")


def printable(text: str) -> str:
    """A name that a process gave itself, for a sentence in a log: with its control characters and stray bytes escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def split_arguments(data: bytes) -> tuple[str, ...]:
    """/proc/PID/cmdline: each argument ends with NUL; a process that overwrote them (a title) may have left out the last."""
    return tuple(os.fsdecode(argument) for argument in data.removesuffix(b"\0").split(b"\0")) if data else ()
