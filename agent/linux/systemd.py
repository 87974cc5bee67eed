"""What the agent asks of systemd where that manages the cgroups: a pod's slice, and a unit that holds the shims.

Containers' own scopes are the engines' business, over D-Bus. What is here happens once per daemon, or for pods of clients that are
no kubelet, so systemctl and systemd-run will do: they speak to process 1 directly where there is no bus (systemctl(1)).
Callers: `agent.pods.pod_cgroup`, `agent.daemon` (the shims' unit).
"""

from __future__ import annotations

import os
from pathlib import Path

from agent import timeouts
from agent.aio import in_thread
from agent.errdefs import Unavailable
from agent.linux.processes import Command, Processes

_TRANSIENT = Path("/run/systemd/transient")
"""Holds the definition of each transient unit for as long as systemd knows it (org.freedesktop.systemd1(5), StartTransientUnit)."""


_SOON = "TimeoutStopSec=10"
"""A node that is shut down doesn't wait longer for shims that heed no SIGTERM; their containers are stopped by then."""


class Systemd:
    """Process 1 of this node. `transient` is another place in tests only."""

    def __init__(self, processes: Processes, transient: Path = _TRANSIENT) -> None:
        self._processes = processes
        self._transient = transient

    async def start_slice(self, name: str) -> None:
        """Make the cgroup of slice `name`, and those of the slices that it is in. One that runs stays as it is.

        Raises:
            Unavailable: systemd refused, or doesn't answer; the text is its own.
        """
        await self._run("systemctl", "start", "--quiet", name)

    async def stop(self, unit: str) -> None:
        """End a unit, and with it every process in it. One that isn't there is no error. Raises Unavailable as `start_slice`."""
        await self._run("systemctl", "stop", "--quiet", unit, missing_ok=True)

    async def delegate(self, unit: str) -> None:
        """Have a service without processes whose cgroup is ours to put cgroups into: systemd(1) leaves alone what is below it, and
        the cgroup itself stays when nothing is in it. One that is there stays as it is.

        Raises:
            Unavailable: as `start_slice`.
        """
        if not await in_thread((self._transient / unit).exists):
            properties = ("Type=oneshot", "RemainAfterExit=yes", "Delegate=yes", "TasksMax=infinity", "OOMPolicy=continue", _SOON)
            settings = [word for each in properties for word in ("--property", each)]
            await self._run("systemd-run", "--quiet", f"--unit={unit}", "--description=Shims of Orlop's pods", *settings, "true")

    async def _run(self, *argv: str, missing_ok: bool = False) -> None:
        try:
            done = await self._processes.run(Command(argv, Path("/"), os.environ, budget=timeouts.SYSTEMD))
        except FileNotFoundError as error:
            raise Unavailable(f"{argv[0]} can't be run, and systemd is process 1 here, so its tools are needed: {error}") from error
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode != 0 and not (missing_ok and "not loaded" in said):
            raise Unavailable(f"{' '.join(argv)} ended with {done.returncode}: {said or 'it said nothing'}")
