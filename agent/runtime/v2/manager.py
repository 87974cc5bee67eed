"""The v2 task manager: the port of containerd's, and the door to this package for `agent.pods` and `agent.daemon`.

It decides which shim a task goes into, starts shims, and remembers both. It never takes anything down itself: that is
`cleanup`'s, which is called from here by whoever notices first (a caller, a connection, a pidfd, a restart).

Intents are in the ledger before a call to `start_shim` or `create`; this module holds them. `stop_shim` and `delete` are the
release functions of `Kind.SHIM` and `Kind.TASK`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import failpoints, log, timeouts
from agent.aio import KeyedLock, Supervisor, in_thread, together, within
from agent.api.types.introspection_pb2 import RuntimeInfo
from agent.config.handlers import RuntimeHandler
from agent.errdefs import AlreadyExists, Closed, DeadlineExceeded, Internal, NotFound, OrlopError, Unavailable
from agent.events import Exchange, Exit, TaskOOM
from agent.identifiers import validate
from agent.linux.processes import Identity
from agent.runtime.v2 import bootstrap, cleanup, load, options, shim_binary, transport
from agent.runtime.v2.bundle import Bundles
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.engine import Engine
from agent.runtime.v2.events import EventServer
from agent.runtime.v2.gate import Gate
from agent.runtime.v2.node import Cgroups, Ledger, Mounts, Processes, Sockets
from agent.runtime.v2.records import ShimRecord, TaskRecord, cgroup_of
from agent.runtime.v2.shim import Shim, ShimState
from agent.runtime.v2.shim_binary import ShimBinaries
from agent.runtime.v2.shim_log import ShimLog
from agent.runtime.v2.sockets import Sockets as NodeSockets
from agent.runtime.v2.task import CreateTask, Stage, Task
from agent.store.ledger import Kind

_log = log.get("runtime")

_OCI_VERSION = "1.0.2"
_TYPE, _SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
"""Annotations by which shims tell a pod's sandbox from its containers, and put them together."""
_NO_PID = 0xFFFFFFFF
_RETRY = 1.0


class TaskManager:
    """All shims and tasks of the node. `start()` it, then `load_existing_tasks()`, then use it; `stop()` leaves all running."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        ledger: Ledger,
        exchange: Exchange,
        processes: Processes,
        mounts: Mounts,
        cgroups: Cgroups,
        connect: transport.Connect = transport.connect,
        sockets: Sockets | None = None,
    ) -> None:
        """`connect` and `sockets` are others in tests only."""
        self._config = config
        self._exchange = exchange
        self._connect = connect
        self._supervisor = Supervisor("runtime")
        """What ends by itself: calls, creates, teardowns."""
        self._watchers = Supervisor("runtime watchers")
        """What ends with a shim: its guard, its connection, outstanding `Wait`s."""
        self._bundles = Bundles(config.bundles, config.work_dirs)
        self._binaries = ShimBinaries(config, processes)
        self._events = EventServer(config.namespace, self)
        self._node = cleanup.Node(
            config=config,
            processes=processes,
            mounts=mounts,
            cgroups=cgroups,
            bundles=self._bundles,
            engine=Engine(config, processes),
            sockets=sockets or NodeSockets(),
            ledger=ledger,
            supervisor=self._supervisor,
            locks=KeyedLock(),
        )
        self._starting = KeyedLock()
        """By shim id: one start or replacement at a time. Taken before the locks of `cleanup`."""
        self._shims: dict[str, Shim] = {}
        self._tasks: dict[str, Task] = {}
        self._gates: dict[str, Gate] = {}
        self._loaded = False
        self._loading: dict[str, list[asyncio.Task[None]]] = {}
        """By sandbox, after a restart."""

    async def start(self) -> None:
        """Listen for the events of shims; raises as `agent.ttrpc.Server.serve`."""
        await self._events.serve(Path(self._config.ttrpc_address))

    async def stop(self, budget: float) -> None:
        """Let calls in flight end for `budget` seconds, then let go of every shim; they and their containers go on."""
        await self._supervisor.stop(budget)
        await self._watchers.stop(0)
        for shim in self._shims.values():
            await shim.close()
        await self._events.stop()

    # ---- shims

    async def start_shim(self, sandbox_id: str, handler: RuntimeHandler, annotations: Mapping[str, str]) -> None:
        """Start the shim of a pinned sandbox, in the sandbox's own bundle, with no task in it. On failure nothing is left.

        Raises:
            NotFound: there is no such shim binary.
            AlreadyExists: the sandbox has a shim.
            DeadlineExceeded, Unavailable, Unknown, Internal: it didn't start; with its own words.
        """
        await self._supervisor.detached(self._start_shim(sandbox_id, handler, annotations), name=f"start of shim {sandbox_id}")

    async def _start_shim(self, sandbox_id: str, handler: RuntimeHandler, annotations: Mapping[str, str]) -> None:
        if sandbox_id in self._shims:
            raise AlreadyExists(f"sandbox {sandbox_id} has a shim")
        binary = await shim_binary.resolve(handler)
        spec = {"ociVersion": _OCI_VERSION, "annotations": {**annotations, _TYPE: "sandbox", _SANDBOX: sandbox_id}}
        bundle = await self._bundles.create(sandbox_id, spec)
        shim = self._new_shim(ShimRecord(bundle.id, sandbox_id, handler, pinned=True, binary=str(binary)))
        self._shims[shim.id] = shim
        try:
            await self._launch(shim)
        except Exception:
            with suppress(OrlopError, OSError):  # told in the log; the ledger's entry is released by the verb that intended it
                await cleanup.shutdown_shim(self._node, shim)
                del self._shims[shim.id]
            raise

    async def stop_shim(self, sandbox_id: str) -> None:
        """Shut down the sandbox's shim, behind its gate, and release what is its own: the release function of `Kind.SHIM`.

        Idempotent; raises as `cleanup.shutdown_shim`.
        """
        self._insist_on_loaded(f"the shim of sandbox {sandbox_id}")
        self._gate(sandbox_id).close()
        async with self._starting.hold(sandbox_id):  # a replacement under way ends first; behind the gate there is no other
            shim = self._shims.get(sandbox_id)
        if shim is not None:
            await cleanup.shutdown_shim(self._node, shim)
            self._shims.pop(sandbox_id, None)
        self._gates.pop(sandbox_id, None)

    def shim_is_outside(self, sandbox_id: str) -> bool:
        """Whether the sandbox's shim has nothing in the pod's network but its tasks. A VM or a sentry would be its child, and in it."""
        shim = self._shims.get(sandbox_id)
        return shim is not None and options.is_runc(shim.record.handler)

    async def kill_shim(self, sandbox_id: str) -> None:
        """Kill the sandbox's shims and clean up after them: the last resort where something in them doesn't end.

        A pinned sandbox gets a new one. Raises DeadlineExceeded if even that doesn't end them.
        """
        for shim in [shim for shim in self._shims.values() if shim.record.sandbox == sandbox_id]:
            await cleanup.cleanup_after_dead_shim(self._node, shim, "its shim was killed, because something in it did not end")
            self._forget_freed()

    async def info(self, handler: RuntimeHandler) -> RuntimeInfo | None:
        """What a handler's shim tells of itself and its engine; None from one that is too old to. Raises as `ShimBinaries.info`."""
        binary = await shim_binary.resolve(handler)
        return await self._binaries.info(str(binary), options.of_handler(handler, self._config))

    # ---- tasks

    async def create(self, request: CreateTask) -> Task:
        """Create a task: bundle, shim (joined, or started), Create. It goes on without its caller; on failure nothing is left.

        Raises:
            AlreadyExists: there is one with this id, or a bundle.
            FailedPrecondition: the sandbox is being stopped.
            NotFound: the sandbox has no shim, or there is no such shim binary.
            OrlopError: Create failed; the shim's or engine's own text.
        """
        return await self._supervisor.detached(self._create(request), name=f"create of {request.id}")

    async def _create(self, request: CreateTask) -> Task:
        validate(request.id, "id")
        validate(request.sandbox_id, "sandbox_id")
        with self._gate(request.sandbox_id).enter():
            if request.id in self._tasks:
                raise AlreadyExists(f"there is a task {request.id}")
            shim = await self._shim_to_join(request)
            joins = shim is not None
            if shim is None:
                binary = str(await shim_binary.resolve(request.handler))
                shim = self._new_shim(ShimRecord(request.id, request.sandbox_id, request.handler, pinned=False, binary=binary))
            bundle = await self._bundles.create(request.id, _annotated(request), _pointing_at(shim, request) if joins else None)
            task = self._tasks[request.id] = Task(self._task_record(request, shim), bundle, shim, self._exchange)
            try:
                if not joins:
                    await self._launch_for(task)
                await self._send_create(task, request)
            except Exception:
                await cleanup.cleanup_failed_create(self._node, task)
                raise
            finally:
                task.settled.set()
                self._forget_freed()
            return task

    def find(self, task_id: str) -> Task | None:
        """The task; None: there is none, or nothing of it is left. Raises Unavailable before the tasks are loaded."""
        self._insist_on_loaded(f"task {task_id}")
        return self._tasks.get(task_id)

    def _insist_on_loaded(self, what: str) -> None:
        if not self._loaded:
            raise Unavailable(f"{what} is not known yet: the agent is still looking at what its previous run left")

    def get(self, task_id: str) -> Task:
        """Raises NotFound: no such task, or nothing of it is left."""
        task = self._tasks.get(task_id)
        if task is None:
            raise NotFound(f"there is no task {task_id}")
        return task

    def tasks(self) -> list[Task]:
        """All tasks of which something may be left, in the order of their creation."""
        return list(self._tasks.values())

    async def has_ended(self, task_id: str) -> bool:
        """Whether no process of a task is left: its init's exit is known, and nobody is in its cgroup. Looked at, not asked of a shim.

        False also where that can't be known: there is no such task, its processes are in a VM, or its cgroup isn't its own.
        """
        task = self.find(task_id)
        if task is None or task.exited is None or not task.record.engine or not task.record.cgroup:
            return False
        return task.ended or not await self._node.cgroups.processes(task.record.cgroup)

    async def delete(self, task_id: str) -> None:
        """Take a task down, whatever it is doing: the release function of `Kind.TASK`. Idempotent.

        Raises:
            DeadlineExceeded: its Create is still under way.
            PartlyReleased, OrlopError, OSError: as `cleanup.delete_task`.
        """
        task = self.find(task_id)
        if task is None:
            return
        await within(timeouts.TASK_DELETE, task.settled.wait(), f"the end of Create of {task_id}, without which it can't be deleted,")
        await cleanup.delete_task(self._node, task)
        self._forget_freed()

    # ---- restart

    async def load_existing_tasks(self) -> None:
        """Know the shims and tasks of the previous run again, and begin to ask each shim what became of them: see `loaded`."""
        for failed in await self._bundles.sweep():
            _log.warning("not swept", path=failed)
        loaded = await load.remembered(self._node, self._new_shim, self._exchange)
        self._shims, self._tasks = loaded.shims, loaded.tasks
        self._loaded = True
        unknown = await self._bundles.ids() - set(self._shims) - set(self._tasks)
        if unknown:
            _log.warning("bundles that nothing in the ledger owns; `orlop audit` shows them", bundles=sorted(unknown))
        for shim in self._shims.values():
            loading = self._watchers.start(self._load(shim), name=f"load of shim {shim.id}")
            self._loading.setdefault(shim.record.sandbox, []).append(loading)

    async def loaded(self, sandbox_id: str) -> None:
        """Return when the shims of a sandbox have told of its tasks; of one that doesn't answer in its budget nothing is known for now."""
        if loading := self._loading.pop(sandbox_id, []):
            await asyncio.wait(loading, timeout=2 * timeouts.SHIM_LOAD)

    async def orphaned_work_dirs(self) -> set[str]:
        """Work dirs that belong to no bundle: a boot takes bundles away, and leaves these. Asked before new ones are made."""
        return await self._bundles.work_dir_ids() - await self._bundles.ids() - set(self._tasks)

    async def remove_work_dirs(self, orphans: Iterable[str]) -> None:
        """Remove them; one that can't be is found by the next start."""
        for orphan in orphans:
            with suppress(OrlopError, OSError):
                await self._bundles.remove_work_dir(self._bundles.at(orphan))

    async def _load(self, shim: Shim) -> None:
        while True:
            try:
                lives = await load.reach(self._node, shim)
                break
            except (OrlopError, OSError) as error:
                _log.error("a shim can't be looked at yet", shim=shim.id, error=str(error))
                await asyncio.sleep(_RETRY)
        if lives:
            self._watchers.start(self._guard(shim, patient=True), name=f"shim {shim.id}")
            adoptions = [self._watchers.start(load.adopt(self._node, task), name=f"load of {task.id}") for task in shim.tasks.values()]
            if adoptions and shim.state is ShimState.CONNECTED:
                await asyncio.wait(adoptions)
        elif shim.record.identity is not None:
            await self._bury(shim, f"its shim, process {shim.record.pid}, ended while the agent was away")

    # ---- events of shims (`events.Sink`)

    def exited(self, container_id: str, exec_id: str, exit_: Exit) -> None:
        """A shim says that a process ended."""
        task = self._tasks.get(container_id)
        if task is None:
            return
        if not exec_id:
            task.finish(exit_)
        elif (process := task.execs.get(exec_id)) is not None:
            process.finish(exit_)

    def out_of_memory(self, container_id: str) -> None:
        """A shim says that the kernel killed a process of the container; may be told several times."""
        if container_id in self._tasks:
            self._exchange.publish(TaskOOM(container_id))

    # ---- how a shim comes to be

    def _new_shim(self, record: ShimRecord) -> Shim:
        return Shim(
            record,
            self._bundles.at(record.id),
            namespace=self._config.namespace,
            gate=self._gate(record.sandbox),
            supervisor=self._supervisor,
            watchers=self._watchers,
            processes=self._node.processes,
            connect=self._connect,
        )

    def _gate(self, sandbox_id: str) -> Gate:
        return self._gates.setdefault(sandbox_id, Gate(sandbox_id))

    async def _launch(self, shim: Shim) -> None:
        """Start the process, connect, hold, and keep watch over it. What a failure leaves is the caller's to clean up."""
        leaf = self._config.shim_leaf(shim.id)
        await failpoints.hit("runtime.shim.cgroup")
        await together(
            self._node.cgroups.create(leaf),
            self._open_log(shim),
            self._bundles.write(shim.bundle, "shim-binary-path", shim.record.binary),
        )
        started = await self._binaries.start(shim.record.binary, shim.bundle, options.of_handler(shim.record.handler, self._config), leaf)
        shim.record = shim.record.listening(started, None)
        await in_thread(bootstrap.write, shim.bundle.path, started)
        try:
            await shim.reach(timeouts.SHIM_DIAL)
        except (Closed, DeadlineExceeded, Unavailable) as error:
            raise Unavailable(f"{error}. Its log: {shim.log_tail() or 'empty'}") from error
        if shim.pinned and (twin := self._twin(shim)) is not None:
            await shim.close()  # and no more: whatever were done to end it would be done to the other one
            raise Unavailable(f"{shim.record.binary} told the address of another pod's shim, that of {twin.id}, for {shim.id}")
        if self._node.ledger.get(Kind.SHIM, shim.id) is not None:
            await self._node.ledger.hold(Kind.SHIM, shim.id, shim.record.to_data())
        self._watchers.start(self._guard(shim), name=f"shim {shim.id}")
        _log.info("shim started", shim=shim.id, pid=shim.record.pid, version=shim.record.version, protocol=shim.record.protocol)

    def _twin(self, shim: Shim) -> Shim | None:
        """Another one that is the same process."""
        found = (other for other in self._shims.values() if other is not shim and other.record.identity == shim.record.identity)
        return next(found, None)

    async def _open_log(self, shim: Shim) -> None:
        shim.attach_log(await ShimLog.open(shim.id, shim.bundle.log))

    async def _launch_for(self, task: Task) -> None:
        """Run `start` for a task of a sandbox that isn't pinned. Where shims group, it may lead to the one that runs already."""
        shim = task.shim
        if self._node.ledger.get(Kind.SHIM, shim.id) is None:  # its task alone tells of it, from before it is started
            task.record = replace(task.record, own_shim=shim.record.to_data())
            await self._node.ledger.hold(Kind.TASK, task.id, task.record.to_data())
        await self._launch(shim)
        if (twin := self._twin(shim)) is not None:
            task.shim = twin
            task.record = replace(task.record, shim=twin.id, own_shim=None)
            shim.cleaned()
            await shim.close()
            await self._node.cgroups.remove(self._config.shim_leaf(shim.id))
            return
        self._shims[shim.id] = shim
        if task.record.own_shim is not None:
            task.record = replace(task.record, own_shim=shim.record.to_data())

    async def _guard(self, shim: Shim, *, patient: bool = False) -> None:
        """Watch over a shim from its start to its end."""
        while True:
            try:
                cause = await shim.watch(patient=patient)
                break
            except OSError as error:
                _log.error("can't watch over a shim now", shim=shim.id, error=str(error))
                await asyncio.sleep(_RETRY)
        await self._bury(shim, cause)

    async def _bury(self, shim: Shim, cause: str) -> None:
        """Clean up after a dead shim, however long its process takes to end; a pinned sandbox then gets another one."""
        while shim.state is not ShimState.CLEANED:
            try:
                await cleanup.cleanup_after_dead_shim(self._node, shim, cause)
            except (OrlopError, OSError) as error:
                _log.error("can't clean up after a shim yet", shim=shim.id, error=str(error))
                await asyncio.sleep(_RETRY)
        self._forget_freed()
        if shim.pinned and shim.gate.is_open:
            async with self._starting.hold(shim.id):
                if self._shims.get(shim.id) is shim and shim.gate.is_open:
                    await self._replace(shim)

    async def _replace(self, dead: Shim) -> Shim:
        """Start a new shim in the bundle of a pinned sandbox. The caller holds the lock of starts.

        Raises as `_launch`; the sandbox then has no shim, and the next create tries again.
        """
        former = dead.record
        binary = await shim_binary.still_there(former.binary, former.handler)
        shim = self._shims[dead.id] = self._new_shim(ShimRecord(former.id, former.sandbox, former.handler, pinned=True, binary=binary))
        try:
            await self._launch(shim)
        except Exception:
            try:
                await cleanup.cleanup_after_dead_shim(self._node, shim, "it did not start")
            except (OrlopError, OSError):  # nobody else watches over it, and until it is cleaned up nothing takes its place
                self._watchers.start(self._bury(shim, "it did not start"), name=f"shim {shim.id}")
            raise
        return shim

    async def _shim_to_join(self, request: CreateTask) -> Shim | None:
        """The sandbox's shim, if the task goes into it without a `start` of its own; None: `start` decides."""
        shim = self._shims.get(request.sandbox_id)
        if request.id == request.sandbox_id:
            return None
        if shim is None:
            raise NotFound(f"sandbox {request.sandbox_id} has no shim")
        if not shim.pinned and not options.is_runc(request.handler) and shim.record.version < bootstrap.MAX_VERSION:
            return None
        if shim.state is ShimState.LOST:
            await shim.is_reached_again()
        if shim.pinned and shim.state is not ShimState.CONNECTED:
            await cleanup.cleanup_after_dead_shim(self._node, shim, shim.how_it_died())
            async with self._starting.hold(shim.id):
                current = self._shims[shim.id]
                return current if current is not shim else await self._replace(shim)
        return shim

    # ---- how a task comes to be

    def _task_record(self, request: CreateTask, shim: Shim) -> TaskRecord:
        runc = options.is_runc(request.handler)
        return TaskRecord(
            id=request.id,
            sandbox=request.sandbox_id,
            shim=shim.id,
            binary=shim.record.binary,
            engine=(request.handler.engine or "runc") if runc else "",
            engine_root=str(self._config.engine_root / self._config.namespace) if runc else "",
            systemd_cgroup=request.handler.systemd_cgroup,
            cgroup=cgroup_of(request.spec, request.id),
        )

    async def _send_create(self, task: Task, request: CreateTask) -> None:
        intended = replace(task.record, create=True)
        await self._node.ledger.hold(Kind.TASK, task.id, intended.to_data())
        task.record = intended
        task.move(Stage.LIVE)
        pid = await task.send_create(request, options.of_handler(request.handler, self._config))
        if pid in (0, _NO_PID):
            raise Internal(f"the shim created {task.id} and says that its pid is {pid}")
        process = await self._node.processes.open(pid)
        identity = Identity(pid, 0) if process is None else process.identity
        if process is not None:
            process.close()
        task.created(identity)
        await failpoints.hit("runtime.task.hold")
        await self._node.ledger.hold(Kind.TASK, task.id, task.record.to_data())

    def _forget_freed(self) -> None:
        for task in [task for task in self._tasks.values() if task.stage is Stage.FREED and task.settled.is_set()]:
            del self._tasks[task.id]
            if task.shim.id == task.id and task.shim.state is ShimState.CLEANED:
                self._shims.pop(task.shim.id, None)


def _annotated(request: CreateTask) -> dict[str, Any]:
    kind = "sandbox" if request.id == request.sandbox_id else "container"
    return {**request.spec, "annotations": {**request.spec.get("annotations", {}), _TYPE: kind, _SANDBOX: request.sandbox_id}}


def _pointing_at(shim: Shim, request: CreateTask) -> dict[str, str]:
    """What `start` would put into the bundle of a container that joins a shim: where that one listens."""
    record = shim.record
    return {bootstrap.FILE: record.bootstrap.to_json(), "sandbox": request.sandbox_id, "shim-binary-path": record.binary}
