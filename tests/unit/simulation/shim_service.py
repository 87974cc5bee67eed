"""A serving shim of the simulated node, and the daemon's connections to it (runtime-v2 3, 4 and 6)."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api.runtime.task.v3 import shim_pb2 as api
from agent.api.types.task import task_pb2
from agent.errdefs import AlreadyExists, Closed, NotFound, Unimplemented, Unknown
from agent.events import Exit
from agent.linux.processes import Command
from tests.unit.simulation.clock import EPOCH, Life
from tests.unit.simulation.engine import Container
from tests.unit.simulation.generations import Generation
from tests.unit.simulation.kernel import Proc
from tests.unit.simulation.node import Job, Node

if TYPE_CHECKING:
    from tests.unit.simulation.shims import Shims

M = TypeVar("M", bound=Message)

_STATUS = {"creating": task_pb2.UNKNOWN, "created": task_pb2.CREATED, "running": task_pb2.RUNNING, "stopped": task_pb2.STOPPED}


class ShimService:
    """A serving shim."""

    def __init__(self, shims: Shims, generation: Generation, group: str, address: str, proc: Proc) -> None:
        self.shims = shims
        self.generation = generation
        self.group = group
        self.address = address
        self.proc = proc
        self.containers: dict[str, Container] = {}
        self.execs: dict[tuple[str, str], Exec] = {}
        self.connections: list[ShimConnection] = []
        self.bundle = Path()
        """In which it was started, and works."""
        self.hung = False
        """Its log has no reader, so that it hangs at the first line."""
        self._node = shims.node
        self._lock = asyncio.Lock()
        self._creating: dict[str, asyncio.Task[Any]] = {}
        proc.at_end.append(self._died)

    def _died(self) -> None:
        if self.shims.sockets.get(self.address) is self:
            self.shims.sockets[self.address] = None
        self.hang_up()

    def hang_up(self) -> None:
        """Every connection is lost, and with it the calls on it."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.lose()

    def delays(self) -> bool:
        return self.proc.stopped or self.hung

    async def serve(self, method: str, request: Any) -> Message:
        await self._node.step()
        while self.delays():
            if self.hung:
                await asyncio.Event().wait()
            await self.proc.continued.wait()
        if method == "Connect":
            return api.ConnectResponse(shim_pid=self.proc.pid)
        if method == "Create":
            return await self._create(request)
        if method == "Shutdown":
            return await self._shutdown()
        if method == "State" and self.generation.one_lock:
            async with self._lock:
                pass
        exec_id = getattr(request, "exec_id", "")
        container = self.containers.get(request.id)
        if container is None or (container.status == "creating" and method != "Delete"):
            raise NotFound(f"container {request.id} not created: not found")
        if method == "Exec":
            return self._exec(container, request)
        if exec_id:
            return await self._of_exec(method, request.id, exec_id)
        return await self._of_init(method, container, request)

    # ---- containers

    async def _create(self, request: Any) -> Message:
        if request.id in self.containers:
            raise AlreadyExists(f"container {request.id}")
        if self.generation.one_lock:
            async with self._lock:
                return await self._create_one(request)
        return await self._create_one(request)

    async def _create_one(self, request: Any) -> Message:
        bundle, node, engine = Path(request.bundle), self._node, self.shims.engine
        task = asyncio.current_task()
        assert task is not None
        self._creating[request.id] = task
        container = None
        try:
            await node.step()
            try:
                (bundle / "runtime").write_text("")
                (bundle / "options.json").write_text("{}")
                root = self.shims.engine_root if self.generation.kind == "runc" else None
                container = engine.new(request.id, bundle, root)
                await node.step()
                for mount in request.rootfs:
                    made = node.kernel.mount(bundle / "rootfs", mount.source, mount.type)
                    container.mounts.append(made)
                    if self.generation.kind == "kata":
                        made.pinned_by = f"kata {request.id}"
            except OSError as error:
                raise Unknown(f"OCI runtime create failed: {error}") from error
            self.containers[request.id] = container
            if self.generation.kind == "gvisor":
                (bundle / "state.json").write_text("{}")
            job = node.job("runc", Command(("runc", "create", request.id), bundle, {}), lambda job, _: engine.create(container, job), "")
            job.proc.cgroup, job.proc.parent = self.proc.cgroup, self.proc.pid
            await self._ends(job)
            fifos = [path for path in (request.stdout, request.stderr) if path]
            if job.proc.status or not _exist(fifos):
                text = job.stderr.decode() or f"runc create ended with {job.proc.status}; or no such FIFO among {fifos}"
                raise Unknown(text)
            assert container.init is not None
            node.world(self._reap(container))
            return api.CreateTaskResponse(pid=container.init.pid)
        except BaseException:
            self.containers.pop(request.id, None)
            if container is not None and self.proc.alive:
                self.shims.unmount(container, release=True)
            raise
        finally:
            del self._creating[request.id]

    async def _ends(self, job: Job) -> None:
        """Wait for a child. Whoever closes the connection kills it; when the shim dies, it goes on alone."""
        try:
            await job.proc.ended.wait()
        except asyncio.CancelledError:
            if self.proc.alive:
                job.proc.kill()
            raise

    async def _reap(self, container: Container) -> None:
        await container.ended.wait()
        assert container.init is not None
        if self.proc.alive and self.containers.get(container.id) is container:
            if not container.own_pids:
                for proc in container.processes(self._node):
                    proc.kill()
            while self.proc.stopped and self.proc.alive:
                await self.proc.continued.wait()
            if self.proc.alive:
                at = round((EPOCH + container.exited_at) * 1e9)
                self._node.tell(container.id, "", Exit(container.exit_status, at, container.init.pid))

    async def _of_init(self, method: str, container: Container, request: Any) -> Message:
        assert container.init is not None or method == "Delete"
        match method:
            case "Start":
                if container.status != "created":
                    raise Unknown(f"cannot start a container that is {container.status}")
                if self._node.fault("engine start"):
                    raise Unknown("OCI runtime start failed: exec format error")
                await self._node.step()
                if container.status != "created":
                    raise Unknown("OCI runtime start failed: its init has ended")
                self.shims.engine.start(container)
                return api.StartResponse(pid=container.init.pid if container.init else 0)
            case "Kill":
                return self._kill(container, request.signal, request.all)
            case "Wait":
                await container.ended.wait()
                if not container.started and self.containers.get(container.id) is not container:
                    await asyncio.Event().wait()  # deleted before it was started: never answered
                return api.WaitResponse(exit_status=container.exit_status, exited_at=timestamp(container.exited_at))
            case "State":
                pid = container.init.pid if container.init else 0
                return api.StateResponse(id=container.id, pid=pid, status=_STATUS[container.status])
            case "Pids":
                return api.PidsResponse(processes=[task_pb2.ProcessInfo(pid=proc.pid) for proc in container.processes(self._node)])
            case "Delete":
                return await self._delete(container)
            case _:
                return Empty()

    def _kill(self, container: Container, number: int, everybody: bool) -> Message:
        init = container.init
        if container.status == "stopped" and everybody and self._node.random.random() < 0.5:
            return Empty()  # some engines find nobody, and that is that
        if container.status == "stopped" or init is None:
            raise NotFound("process already finished: not found")
        self._node.killed_by_daemon(init)
        if number == 9:
            for proc in container.processes(self._node) if everybody else [init]:
                proc.kill()
        elif container.heeds_sigterm and container.started:
            self._node.loop.call_later(self._node.random.random() * 8, init.end, 143, context=self._node.context)
        return Empty()

    async def _delete(self, container: Container) -> Message:
        node = self._node
        if container.status == "creating" or container.init is None:
            raise NotFound(f"container {container.id} not created: not found")
        if container.status == "running":
            raise Unknown("cannot delete a running process")
        never_ran = container.status == "created"
        if never_ran:
            del self.containers[container.id]  # so that Wait is never answered
            for proc in container.processes(node):
                proc.kill()
        mode = node.fault("task delete")
        if mode == "fails":
            raise Unknown("runc did not terminate successfully: exit status 1")
        if mode == "hangs":
            await asyncio.sleep(45)
        if self.generation.kind == "runc":
            assert container.state_dir is not None
            if failure := await self.shims.engine.delete(container.id, container.state_dir, container.cgroup):
                raise Unknown(failure)
        elif failure := await self.shims.engine.end_all(container.cgroup):
            raise Unknown(failure)
        await node.step()
        try:
            self.shims.unmount(container, release=True)
        except OSError as error:
            raise Unknown(f"failed rootfs umount: {error}") from error
        self.containers.pop(container.id, None)
        if never_ran:
            return api.DeleteResponse(pid=container.init.pid)
        return api.DeleteResponse(pid=container.init.pid, exit_status=container.exit_status, exited_at=timestamp(container.exited_at))

    async def _shutdown(self) -> Message:
        if self.generation.shutdown_kills_create:
            if self._creating and not any(other not in self._creating for other in self.containers):
                self._node.broken(f"Shutdown of the shim of {self.group} beside a Create: it kills it half-way")
        elif self._creating:
            async with self._lock:
                pass
        if not self.containers:
            self.shims.sockets.pop(self.address, None)
            if self._node.random.random() < 0.5:
                self.proc.end(0)
                raise Closed("the answer was lost")
            self._node.loop.call_later(0.002, self.proc.end, 0, context=self._node.context)
        return Empty()

    # ---- execs

    def _exec(self, container: Container, request: Any) -> Message:
        if (container.id, request.exec_id) in self.execs:
            raise AlreadyExists(f"exec {request.exec_id}")
        if container.status != "running":
            raise Unknown("cannot exec in a container that does not run")
        self.execs[container.id, request.exec_id] = Exec(container, request.stdout, request.stderr)
        return Empty()

    async def _of_exec(self, method: str, container_id: str, exec_id: str) -> Message:
        process = self.execs.get((container_id, exec_id))
        if process is None:
            raise NotFound(f"exec {exec_id} not found")
        match method:
            case "Start":
                if process.container.status != "running":
                    raise Unknown("OCI runtime exec failed: cannot exec in a stopped container")
                await self._node.step()
                if process.container.status != "running":
                    raise Unknown("OCI runtime exec failed: cannot exec in a stopped container")
                process.run(self._node, self.shims.engine.fork(process.container))
                assert process.proc is not None
                return api.StartResponse(pid=process.proc.pid)
            case "Kill":
                if process.proc is None or not process.proc.alive:
                    raise NotFound("process already finished: not found")
                process.proc.kill()
            case "Wait":
                while process.proc is None:
                    await asyncio.Event().wait()
                await process.proc.ended.wait()
                return api.WaitResponse(exit_status=process.proc.status & 255, exited_at=timestamp(self._node.loop.time()))
            case "Delete":
                if process.proc is not None and process.proc.alive:
                    raise Unknown("cannot delete a running process")
                self.execs.pop((container_id, exec_id), None)
                process.close()
                return api.DeleteResponse()
            case _:
                pass
        return Empty()


class Exec:
    """A further process of a container, and the ends of its FIFOs that the shim has."""

    def __init__(self, container: Container, stdout: str, stderr: str) -> None:
        self.container = container
        self.proc: Proc | None = None
        self._ends: list[int] = []
        for path in (stdout, stderr):
            with suppress(OSError):
                self._ends.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def run(self, node: Node, proc: Proc) -> None:
        self.proc = proc
        for end in self._ends[:1]:
            os.write(end, b"said\n")
        proc.at_end.append(self.close)
        if node.random.random() < 0.8:
            node.loop.call_later(node.random.random() * 2, proc.end, 0, context=node.context)

    def close(self) -> None:
        while self._ends:
            os.close(self._ends.pop())


class ShimConnection:
    """One connection of the daemon to a shim."""

    def __init__(self, shim: ShimService, life: Life) -> None:
        self._shim = shim
        self._life = life
        self._gone = asyncio.Event()
        self._calls: dict[asyncio.Task[Message], asyncio.Future[Message]] = {}
        shim.connections.append(self)

    @property
    def closed(self) -> bool:
        return self._gone.is_set()

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        self._life.check()
        if self.closed:
            raise Closed("closed")
        shim = self._shim
        if timeout is not None:
            shim.shims.node.broken(f"{method} has a deadline that reaches the shim, which would kill the engine")
        if service != f"containerd.task.v{shim.generation.version}.Task":
            raise Unimplemented(f"service {service}")
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        serving = shim.shims.node.world(shim.serve(method, request))
        self._calls[serving] = answer
        serving.add_done_callback(self._answered)
        made = await answer
        self._life.check()
        assert isinstance(made, response), (method, made)
        return made

    def _answered(self, serving: asyncio.Task[Message]) -> None:
        answer = self._calls.pop(serving, None)
        error = None if serving.cancelled() else serving.exception()
        if answer is None or answer.done():
            return
        if serving.cancelled():
            answer.set_exception(Closed("the connection was lost"))
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(serving.result())

    def lose(self) -> None:
        """It is closed, by whomever: the shim cancels every call on it."""
        if self._gone.is_set():
            return
        self._gone.set()
        if self in self._shim.connections:
            self._shim.connections.remove(self)
        calls, self._calls = self._calls, {}
        for serving, answer in calls.items():
            serving.cancel()
            if not answer.done():
                answer.set_exception(Closed("the connection was lost"))
                answer.exception()  # perhaps nobody waits for it any more

    def close(self) -> None:
        self.lose()

    async def wait_closed(self) -> None:
        await self._gone.wait()


def _exist(paths: list[str]) -> bool:
    return all(os.path.exists(path) for path in paths)


def timestamp(at: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(round((EPOCH + at) * 1e9))
    return made
