"""A node with shims that behave as runc's do, as far as the task manager can tell: they group by sandbox, serve one version of the task
service, answer Wait when a container ends, and die, hang or refuse on demand. Bundles are real directories; nothing else is real.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.aio import Supervisor
from agent.api.runtime.task.v3 import shim_pb2 as api
from agent.api.types.task import task_pb2
from agent.errdefs import Closed, DeadlineExceeded, NotFound, OrlopError, Unavailable, Unimplemented, Unknown
from agent.linux.mounts import Holder, MountInfo
from agent.linux.processes import Command, Completed, Identity, ProcessInfo
from agent.runtime.v2.bootstrap import Bootstrap

M = TypeVar("M", bound=Message)


class SimProcess:
    """A process, and everybody's pidfd of it."""

    def __init__(self, pid: int) -> None:
        self.identity = Identity(pid, pid * 10)
        self.ended = asyncio.Event()
        self.at_end: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        return self.identity.pid

    def alive(self) -> bool:
        return not self.ended.is_set()

    async def wait(self) -> None:
        await self.ended.wait()

    def kill(self, signal_number: int, /) -> None:
        self.ended.set()
        self.at_end()

    def close(self) -> None:
        pass


@dataclass
class SimContainer:
    id: str
    process: SimProcess
    status: int = task_pb2.CREATED
    exit_status: int = 0
    execs: dict[str, asyncio.Event] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    resources: dict[str, Any] = field(default_factory=dict)

    def stop(self, status: int) -> None:
        self.status, self.exit_status = task_pb2.STOPPED, status
        self.process.ended.set()
        self.stopped.set()


class SimShim:
    """A shim process."""

    def __init__(self, node: SimNode, group: str, process: SimProcess, version: int) -> None:
        self.node = node
        self.group = group
        self.process = process
        self.version = version
        self.containers: dict[str, SimContainer] = {}
        self.connections: list[SimConnection] = []
        self.mute = False
        """Accepts, and never answers."""
        self.deaf = False
        """Doesn't accept."""

    def die(self) -> None:
        self.process.kill(signal.SIGKILL)

    def hang_up(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.lose()

    async def serve(self, method: str, request: Any) -> Message:
        self.node.calls.append(f"{method} {request.id}")
        if method in self.node.fail:
            raise self.node.fail.pop(method)
        if method in self.node.hang:
            self.node.hanging.set()
            await self.node.hang[method].wait()
        if self.mute:
            await asyncio.Event().wait()
        if method == "Connect":
            return api.ConnectResponse(shim_pid=self.process.pid)
        if method == "Create":
            container = self.containers[request.id] = SimContainer(request.id, self.node.spawn())
            self.node.mounted.add(request.id)
            return api.CreateTaskResponse(pid=container.process.pid)
        if method == "Shutdown":
            if not self.containers:
                self.die()
            return Empty()
        found = self.containers.get(request.id)
        if found is None:
            raise NotFound(f"container {request.id} not created: not found")
        exec_id = getattr(request, "exec_id", "")
        return await self._exec(method, found, exec_id) if exec_id else await self._init(method, found, request)

    async def _init(self, method: str, container: SimContainer, request: Any) -> Message:
        match method:
            case "Start":
                container.status = task_pb2.RUNNING
                return api.StartResponse(pid=container.process.pid)
            case "Kill":
                if container.stopped.is_set():
                    raise NotFound("process already finished")
                container.stop(137)
            case "Wait":
                await container.stopped.wait()
                return api.WaitResponse(exit_status=container.exit_status, exited_at=Timestamp(seconds=5))
            case "State":
                return api.StateResponse(id=container.id, pid=container.process.pid, status=container.status)  # type: ignore[arg-type]  # an enum's number
            case "Pids":
                return api.PidsResponse(processes=[task_pb2.ProcessInfo(pid=container.process.pid)])
            case "Update":
                container.resources = json.loads(request.resources.value)
            case "Stats":
                return api.StatsResponse(stats=self.node.stats)
            case "Delete":
                container.stop(container.exit_status)
                del self.containers[container.id]
                self.node.mounted.discard(container.id)
                return api.DeleteResponse(exit_status=container.exit_status, exited_at=Timestamp(seconds=5))
        return Empty()

    async def _exec(self, method: str, container: SimContainer, exec_id: str) -> Message:
        if method == "Exec":
            container.execs[exec_id] = asyncio.Event()
            return Empty()
        ended = container.execs[exec_id]
        match method:
            case "Start":
                return api.StartResponse(pid=self.node.spawn().pid)
            case "Kill":
                ended.set()
            case "Wait":
                await ended.wait()
                return api.WaitResponse(exit_status=3, exited_at=Timestamp(seconds=5))
            case "Delete":
                del container.execs[exec_id]
                return api.DeleteResponse()
        return Empty()


class SimConnection:
    def __init__(self, shim: SimShim) -> None:
        self._shim = shim
        self._closed = asyncio.Event()
        shim.connections.append(self)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def lose(self) -> None:
        self._closed.set()

    def close(self) -> None:
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        assert timeout is None, "a deadline that reaches the shim kills the engine that works for it"
        if self.closed:
            raise Closed("closed")
        if service != f"containerd.task.v{self._shim.version}.Task":
            raise Unimplemented(f"service {service}")
        serving = asyncio.ensure_future(self._shim.serve(method, request))
        lost = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((serving, lost), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                raise Closed("the connection was lost")
            answer = serving.result()
        finally:
            serving.cancel()
            lost.cancel()
        assert isinstance(answer, response)
        return answer


class SimNode:
    """Processes, mounts, cgroups, and the way to a shim."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.commands: list[str] = []
        self.fail: dict[str, OrlopError] = {}
        """Method -> error of its next call."""
        self.hang: dict[str, asyncio.Event] = {}
        self.hanging = asyncio.Event()
        self.stats = AnyMessage(type_url="some.Metrics", value=b"numbers")
        self.shims: dict[str, SimShim] = {}
        """By address; a new one takes the place of a dead one."""
        self.all_processes: dict[int, SimProcess] = {}
        self.mounted: set[str] = set()
        self.cgroups_made: set[str] = set()
        self.members: dict[str, set[int]] = {}
        """Processes in a cgroup, beside those of containers."""
        self.printed_version = 2
        self.served_version = 2
        self.start_says: Completed | None = None
        """Answer of the next `start`, which then starts nothing."""
        self.groups = True
        self._pids = 100

    def spawn(self) -> SimProcess:
        self._pids += 1
        process = self.all_processes[self._pids] = SimProcess(self._pids)
        return process

    def shim(self, sandbox: str) -> SimShim:
        return self.shims[f"/{sandbox}"]

    # ---- transport

    async def connect(self, bootstrap: Bootstrap, _: str, __: Supervisor, ___: float) -> SimConnection:
        shim = self.shims.get(bootstrap.address)
        if shim is None or not shim.process.alive() or shim.deaf:
            raise Unavailable(f"nobody listens at {bootstrap.address}")
        return SimConnection(shim)

    # ---- processes

    async def open(self, pid: int, start_time: int | None = None) -> SimProcess | None:
        process = self.all_processes.get(pid)
        if process is None or not process.alive() or start_time not in (None, process.identity.start_time):
            return None
        return process

    async def table(self) -> list[ProcessInfo]:
        return []

    async def run(self, command: Command) -> Completed:
        name = command.argv[command.argv.index("-id") + 1] if "-id" in command.argv else command.argv[-1]
        self.commands.append(f"{command.argv[-1]} {name}")
        if command.argv[-1] == "start":
            return self._start(command, name)
        for shim in self.shims.values():
            if name in shim.containers:
                shim.containers.pop(name).stop(137)
        self.mounted.discard(name)
        return Completed(0, b"", b"")

    def _start(self, command: Command, name: str) -> Completed:
        assert (command.cwd / "log").is_fifo(), "a shim without its log FIFO dies at once"
        assert command.cgroup in self.cgroups_made
        if self.start_says is not None:
            said, self.start_says = self.start_says, None
            return said
        annotations = json.loads((command.cwd / "config.json").read_text())["annotations"]
        group = annotations["io.kubernetes.cri.sandbox-id"] if self.groups else name
        address = f"/{group}"
        running = self.shims.get(address)
        if running is None or not running.process.alive():
            shim = self.shims[address] = SimShim(self, group, self.spawn(), self.served_version)
            shim.process.at_end = shim.hang_up
        if self.printed_version == 2:
            return Completed(0, address.encode(), b"")
        return Completed(0, Bootstrap(3, address, "ttrpc").to_json().encode(), b"")

    # ---- mounts

    async def at_or_below(self, path: Path) -> list[MountInfo]:
        return [MountInfo(1, 1, "0:1", "/", path, "rw", "", "overlay", "overlay", "rw")] if path.name in self.mounted else []

    async def unmount_all(self, path: Path) -> None:
        self.mounted.discard(path.name)

    async def holders(self, path: Path) -> list[Holder]:
        return []


class SimCgroups:
    def __init__(self, node: SimNode) -> None:
        self._node = node

    async def create(self, path: str) -> None:
        self._node.cgroups_made.add(path)

    async def exists(self, path: str) -> bool:
        return path in self._node.cgroups_made

    async def processes(self, path: str) -> set[int]:
        return self._node.members.get(path, set())

    async def named(self, path: str) -> str:
        return str(await self.processes(path))

    async def kill(self, path: str, budget: float) -> None:
        if budget <= 0:
            raise DeadlineExceeded(path)

    async def remove(self, path: str) -> None:
        self._node.cgroups_made.discard(path)


FAILS = Unknown("OCI runtime create failed: no such file or directory")
