"""Containers and the OCI engine (runc) of the simulated node, as runtime-v2 6.4 tells of it.

A create makes the cgroup, its directory, the init, `state.json`, the pid file, in this order, and may be killed between any two. Without
`state.json` the init ends by itself, and the cgroup stays; with it the init waits for ever. `delete --force` of a container without
`state.json` removes the directory, not the cgroup, and says that all is well.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.linux.processes import Command
from agent.runtime.v2.records import cgroup_of
from tests.unit.simulation.kernel import MountPoint, Proc
from tests.unit.simulation.node import Job, Node

_DELETE_PATIENCE = 10.0


@dataclass
class Container:
    """What there really is of a container."""

    id: str
    sandbox: str
    bundle: Path
    cgroup: str
    state_dir: Path | None
    """The engine's directory below the agent's engine root; None where the engine is another one."""
    netns: int = 0
    init: Proc | None = None
    status: str = "creating"
    """creating, created, running, stopped."""
    exit_status: int = 0
    exited_at: float = 0.0
    own_pids: bool = True
    """Its processes are in a PID namespace that ends with the init."""
    heeds_sigterm: bool = True
    started: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    mounts: list[MountPoint] = field(default_factory=list)
    delete_tried: bool = False
    buried: bool = False
    """It was looked at once since its bundle has gone."""

    def processes(self, node: Node) -> list[Proc]:
        return [proc for proc in node.kernel.procs.values() if proc.owner == self.id]


class Engine:
    """What runc does."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.containers: dict[str, Container] = {}
        """All that were ever created, by id."""
        node.programs["runc"] = self._command

    def new(self, container_id: str, bundle: Path, engine_root: Path | None) -> Container:
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        spaces = {space["type"]: space.get("path", "") for space in spec["linux"]["namespaces"]}
        path = spaces.get("network", "")
        container = Container(
            container_id,
            spec["annotations"]["io.kubernetes.cri.sandbox-id"],
            bundle,
            cgroup_of(spec, container_id),
            None if engine_root is None else engine_root / container_id,
            netns=self._node.kernel.pins.get(Path(path), -1) if path else 0,
            own_pids=spaces.get("pid") == "",
            heeds_sigterm=self._node.random.random() < 0.6,
        )
        self.containers[container_id] = container
        return container

    async def create(self, container: Container, job: Job) -> int:
        """`runc create`; what it says on stderr is why it failed."""
        kernel, step = self._node.kernel, self._node.step
        written = False
        try:
            await step()
            mode = self._node.fault("engine create")
            if mode == "fails":
                job.says(stderr=b"OCI runtime create failed: executable file not found in $PATH")
                return 1
            if container.netns < 0:
                job.says(stderr=b"OCI runtime create failed: no such network namespace")
                return 1
            kernel.make_cgroup(container.cgroup)
            await step()
            if container.state_dir is not None:
                container.state_dir.mkdir(parents=True)
                (container.state_dir / "exec.fifo").touch()
            await step()
            if mode == "hangs":
                await asyncio.Event().wait()
            init = container.init = kernel.spawn("runc:[1:CHILD]", ("runc", "init"), cgroup=container.cgroup, parent=job.proc.pid)
            init.owner, init.netns = container.id, container.netns
            init.at_end.append(lambda: self._init_ended(container))
            await step()
            if mode == "killed early":
                job.proc.kill()
                await asyncio.Event().wait()
            if container.state_dir is not None:
                state = {"init_process_pid": init.pid, "init_process_start": init.identity.start_time}
                (container.state_dir / "state.json").write_text(json.dumps(state))
            written = True
            init.comm = "runc:[2:INIT]"
            await step()
            if mode == "killed late":
                job.proc.kill()
                await asyncio.Event().wait()
            (container.bundle / "init.pid").write_text(str(init.pid))
            await step()
            if not init.alive:
                job.says(stderr=b"OCI runtime create failed: its init has ended")
                return 1
            container.status = "created"
            return 0
        except asyncio.CancelledError:
            if not written and container.init is not None:
                self._node.loop.call_later(0.01, container.init.end, 1, context=self._node.context)
            raise
        except OSError as error:
            job.says(stderr=f"OCI runtime create failed: {error}".encode())
            return 1

    def start(self, container: Container) -> None:
        assert container.init is not None
        container.init.comm = "app"
        container.status, container.started = "running", True
        if container.state_dir is not None:
            (container.state_dir / "exec.fifo").unlink(missing_ok=True)
        if self._node.random.random() < 0.4:
            self.fork(container)

    def fork(self, container: Container) -> Proc:
        """One process more in it."""
        assert container.init is not None
        child = self._node.kernel.spawn("worker", cgroup=container.cgroup, parent=container.init.pid)
        child.owner, child.netns = container.id, container.netns
        return child

    def _init_ended(self, container: Container) -> None:
        assert container.init is not None
        status = container.init.status
        container.status = "stopped"
        container.exit_status = 128 - status if status < 0 else status
        container.exited_at = self._node.loop.time()
        if container.own_pids:
            for proc in container.processes(self._node):
                proc.kill()
        container.ended.set()

    async def delete(self, container_id: str, state_dir: Path, cgroup: str) -> str:
        """`runc delete --force`: why it failed, or nothing."""
        await self._node.step()
        mode = self._node.fault("engine delete")
        if mode == "lies":
            return ""
        if mode == "fails":
            return "runc delete failed: device or resource busy"
        if mode == "hangs":
            await asyncio.Event().wait()
        if not (state_dir / "state.json").exists():
            shutil.rmtree(state_dir, ignore_errors=True)
            return ""
        if (failure := await self.end_all(cgroup)) != "":
            return failure
        await self._node.step()
        shutil.rmtree(state_dir, ignore_errors=True)
        return ""

    async def end_all(self, cgroup: str) -> str:
        """Kill everybody in the cgroup and remove it: why that failed, or nothing."""
        kernel = self._node.kernel
        deadline = self._node.loop.time() + _DELETE_PATIENCE
        while members := kernel.members(cgroup):
            if self._node.loop.time() > deadline:
                return f"container still has {members}"
            for proc in members:
                proc.kill()
            await asyncio.sleep(0.1)
        await self._node.step()
        kernel.remove_cgroup(cgroup)
        return ""

    async def _command(self, job: Job, command: Command) -> int:
        """The engine, run by the daemon itself: only ever `delete --force ID`."""
        container_id = command.argv[-1]
        root = Path(command.argv[command.argv.index("--root") + 1])
        known = self.containers.get(container_id)
        failure = await self.delete(container_id, root / container_id, known.cgroup if known else "/none")
        job.says(stderr=failure.encode())
        return 1 if failure else 0
