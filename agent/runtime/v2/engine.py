"""The OCI engine's own state of a container: what `shim delete` reads and removes, and what is looked at afterwards.

runc keeps `<root>/<id>/state.json`, crun `<root>/<id>/status`, runsc files and a socket (`engine_files`). Only used by `cleanup`: a
healthy container is its shim's.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from agent import timeouts
from agent.aio import in_thread
from agent.errdefs import FailedPrecondition, Unknown
from agent.linux import engine_files, files
from agent.linux.processes import Command, Identity
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.node import Processes
from agent.runtime.v2.records import TaskRecord

_LONGEST = 16 << 20
"""Bytes of an engine's state; runc's has all of the container's mounts."""


class Engine:
    """Looks at, and takes down, what engines keep below the agent's engine root."""

    def __init__(self, config: RuntimeConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes

    async def has_state(self, record: TaskRecord) -> bool:
        """Whether the engine still has a directory or files for the container."""
        return bool(record.engine_root) and await in_thread(_has_state, record)

    async def init(self, record: TaskRecord) -> Identity | None:
        """The container's first process, by the engine's state; None: no state, or none that can be read."""
        return await in_thread(_init, record) if record.engine_root else None

    async def delete(self, record: TaskRecord) -> None:
        """`ENGINE delete --force`.

        Raises:
            DeadlineExceeded: it took longer than its budget, and was killed.
            FailedPrecondition: there is no such engine.
            Unknown: it failed; the text is its own.
        """
        systemd = ("--systemd-cgroup",) if record.systemd_cgroup else ()
        argv = (record.engine, "--root", record.engine_root, *systemd, "delete", "--force", record.id)
        try:
            completed = await self._processes.run(
                Command(argv, Path("/"), os.environ, budget=timeouts.ENGINE, cgroup=self._config.helper_cgroup)
            )
        except FileNotFoundError as error:
            raise FailedPrecondition(f"engine {record.engine} can't be run: {error}") from error
        if completed.returncode != 0:
            said = completed.stderr.decode(errors="replace").strip()[:2000]
            raise Unknown(f"{record.engine} delete --force {record.id} ended with {completed.returncode}: {said}")

    async def remove_state(self, record: TaskRecord) -> None:
        """Remove the engine's directory or files, whose container is known to be gone. Gone: a no-op. Raises OSError."""
        if record.engine_root:
            await in_thread(_remove, record)


def _directory(record: TaskRecord) -> Path:
    return Path(record.engine_root) / record.id


def _init(record: TaskRecord) -> Identity | None:
    for name, pid, start in (("state.json", "init_process_pid", "init_process_start"), ("status", "pid", "process-start-time")):
        try:
            state: Any = json.loads(files.read_own(f"{_directory(record)}/{name}", _LONGEST))
            identity = Identity(int(state[pid]), int(state[start]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return identity if identity.pid > 0 else None
    return None


def _has_state(record: TaskRecord) -> bool:
    return _directory(record).exists() or bool(engine_files.of(Path(record.engine_root), record.id))


def _remove(record: TaskRecord) -> None:
    directory = _directory(record)
    if directory.exists():
        shutil.rmtree(directory)
    for path in engine_files.of(Path(record.engine_root), record.id):
        path.unlink(missing_ok=True)
