"""A world: one node, the daemons that come and go on it, and the kubelet that calls them."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from tests.unit.simulation.clock import Loop
from tests.unit.simulation.cni import Network
from tests.unit.simulation.copier import Copier
from tests.unit.simulation.daemon import Daemon, runtime_config
from tests.unit.simulation.disk import Disk
from tests.unit.simulation.engine import Engine
from tests.unit.simulation.generations import GENERATIONS
from tests.unit.simulation.node import Node
from tests.unit.simulation.shims import Shims


def make_binaries(directory: Path) -> Path:
    """The programs' files; that they are there and executable is all that is looked at."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("runc", "bridge", "portmap", *(generation.binary for generation in GENERATIONS)):
        path = directory / name
        path.touch()
        path.chmod(0o755)
    return directory


class World:
    """One node from its boot to its end."""

    def __init__(self, loop: Loop, top: Path, binaries: Path, disk: Disk, *, v2: bool) -> None:
        self.loop = loop
        self.node = Node(loop, top, binaries, v2=v2)
        (top / "proc" / "self").mkdir(parents=True)
        (top / "proc" / "self" / "mountinfo").touch()
        (top / "proc" / "sys" / "kernel" / "random").mkdir(parents=True)
        self.boots = 1
        self._write_boot_id()
        (top / "logs").mkdir()
        self.engine = Engine(self.node)
        self.network = Network(self.node)
        self.shims = Shims(self.node, self.engine, runtime_config(self.node))
        self.copier = Copier(self.node, self._silent)
        self.disk = disk
        self.daemon: Daemon | None = None
        self.starts = 0
        self.crashes = 0

    def _silent(self, container_id: str) -> bool:
        return not any(proc.owner == container_id for proc in self.node.kernel.procs.values())

    @property
    def running(self) -> bool:
        return self.daemon is not None and not self.daemon.life.dead

    async def boot(self) -> Daemon:
        """Start a daemon; the one that is started after that if this one dies at once."""
        for _ in range(3):
            await self.bury()
            self.starts += 1
            self.daemon = Daemon(self.node, self.shims, self.copier, self.starts, self.disk, self.boot_id)
            await self.daemon.start()
            if not self.daemon.life.dead:
                return self.daemon
        raise AssertionError("three daemons in a row have died while they started")

    def crash(self) -> None:
        """The daemon, if one runs, is killed."""
        if self.daemon is not None and not self.daemon.life.dead:
            self.crashes += 1
            self.daemon.crash()

    async def power_cut(self) -> None:
        """The node boots again: what is in memory and in /run is gone, what is on disk is not."""
        self.crash()
        await self.bury()
        node, kernel = self.node, self.node.kernel
        for proc in list(kernel.procs.values()):
            proc.end(-9)
        await asyncio.sleep(0.1)  # what ended with them has ended
        kernel.mounts.clear()
        kernel.cgroups.clear()
        kernel.pins.clear()
        self.network.interfaces.clear()
        self.network.chains.clear()
        self.shims.sockets.clear()
        self.engine.containers.clear()
        self.disk.lose(node.state_dir)
        for directory in (node.state_dir, node.netns_dir):
            shutil.rmtree(directory)
            directory.mkdir()
        self.boots += 1
        self._write_boot_id()

    @property
    def boot_id(self) -> str:
        return f"boot {self.boots}"

    def _write_boot_id(self) -> None:
        (self.node.top / "proc" / "sys" / "kernel" / "random" / "boot_id").write_text(self.boot_id)

    async def bury(self) -> None:
        """See the end of a daemon that was killed."""
        if self.daemon is not None:
            await self.daemon.buried()
            self.daemon = None

    async def end(self) -> None:
        """Let go of everything, so that the loop can be closed."""
        self.crash()
        await self.bury()
        while everything := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in everything:
                task.cancel()
            await asyncio.wait(everything)


def scratch() -> Path:
    """Where this process keeps its nodes: in memory, if that is to be had."""
    shared = Path("/dev/shm")
    return (shared if os.access(shared, os.W_OK) else Path("/tmp")) / f"orlop-simulation-{os.getpid()}"


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
