"""Tasks: containers in a shim, and the processes that are run beside their init.

What a task is doing is the shim's to know (`state()`); what is to be taken down is told by its stage:

    NEW --Create is sent--> LIVE --Delete answered, also NotFound--> DELETED --nothing left on the node--> FREED
     |                       |                                         |                                    |
     |                       +--its shim died--> ORPHANED --nothing left on the node------------------------+
     +--the create failed before that----------------------------------+

Who may free it follows from the stage: LIVE nobody, DELETED the one that deletes it, ORPHANED the cleanup of its shim. The
changes are made without an `await` in between, so that each task has one owner at a time.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from agent import failpoints, timeouts
from agent.aio import within
from agent.api.runtime.task.v3.shim_pb2 import (
    CloseIORequest,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteRequest,
    DeleteResponse,
    ExecProcessRequest,
    KillRequest,
    PidsRequest,
    PidsResponse,
    ResizePtyRequest,
    StartRequest,
    StartResponse,
    StateRequest,
    StateResponse,
    StatsRequest,
    StatsResponse,
    UpdateTaskRequest,
)
from agent.api.types.mount_pb2 import Mount as MountMessage
from agent.config.handlers import RuntimeHandler
from agent.errdefs import AlreadyExists, Closed, Internal, NotFound, OrlopError
from agent.events import Exchange, Exit, TaskDelete, TaskExit
from agent.linux.mounts import Mount
from agent.linux.processes import Identity
from agent.runtime.v2 import exits, options
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.records import TaskRecord
from agent.runtime.v2.shim import Shim

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class CreateTask:
    """What `TaskManager.create` needs. `id` equal to `sandbox_id` is the sandbox itself, as a task.

    `stdin`, `stdout` and `stderr` are paths of FIFOs, or empty; without a terminal both outputs or neither. `rootfs` is
    mounted by the shim, in this order.
    """

    id: str
    sandbox_id: str
    handler: RuntimeHandler
    spec: Mapping[str, Any]
    rootfs: list[Mount]
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Stage(StrEnum):
    NEW = "new"
    LIVE = "live"
    """In a shim, or on the way into it."""
    DELETED = "deleted"
    """Not in its shim any more; what is left on the node is its deleter's."""
    ORPHANED = "orphaned"
    """Its shim is dead; what is left is that shim's cleanup's."""
    FREED = "freed"


_NEXT: Mapping[Stage, frozenset[Stage]] = {
    Stage.NEW: frozenset({Stage.LIVE, Stage.DELETED}),
    Stage.LIVE: frozenset({Stage.DELETED, Stage.ORPHANED}),
    Stage.DELETED: frozenset({Stage.FREED}),
    Stage.ORPHANED: frozenset({Stage.FREED}),
    Stage.FREED: frozenset(),
}


class Task:
    """A container in a shim; from `TaskManager.create` or `get`."""

    def __init__(self, record: TaskRecord, bundle: Bundle, shim: Shim, exchange: Exchange) -> None:
        self.record = record
        self.bundle = bundle
        self.shim = shim
        self.stage = Stage.NEW
        self.settled = asyncio.Event()
        """Set when its create has ended, one way or the other."""
        self.ended = False
        """No process of it is left, as was looked at; something else may be."""
        self.gone = False
        """Nothing of it is left on the node; what is still to do is to say so."""
        self.failure: Exception | None = None
        """Why the cleanup of its dead shim could not free it."""
        self.execs: dict[str, ExecProcess] = {}
        self._exchange = exchange
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._delete_announced = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def sandbox_id(self) -> str:
        return self.record.sandbox

    @property
    def pid(self) -> int:
        """Of the container's init; 0 until it is created."""
        return self.record.pid

    @property
    def exited(self) -> Exit | None:
        """How its init ended, once that is known."""
        return self._exit.result() if self._exit.done() else None

    def __repr__(self) -> str:
        return f"<Task {self.id}: {self.stage}, pid {self.pid}>"

    def move(self, stage: Stage) -> None:
        """Enter the next stage.

        Raises:
            Closed: LIVE, but the shim is dead already.
            Internal: not a stage that comes after the present one.
        """
        if stage not in _NEXT[self.stage]:
            raise Internal(f"task {self.id} can't become {stage}: it is {self.stage}")
        if stage is Stage.LIVE:
            self.shim.admit(self)
        else:
            self.shim.dismiss(self)
            self._stop_watching()
        self.stage = stage

    # ---- the shim's answers

    async def send_create(self, request: CreateTask, create_options: AnyMessage | None) -> int:
        """Create it in the shim, and return the pid of its init. Sent without a deadline: half a create leaves a `runc init`.

        Raises OrlopError: the shim's or engine's own text, or Closed.
        """
        message = CreateTaskRequest(
            id=self.id,
            bundle=str(self.bundle.path),
            rootfs=[MountMessage(type=m.type, source=m.source, target=m.target, options=m.options) for m in request.rootfs],
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            options=create_options,
        )
        await failpoints.hit("runtime.task.create")
        response = await self.shim.call("Create", message, CreateTaskResponse)
        return response.pid

    def created(self, init: Identity) -> None:
        """Create answered; its exit is waited for from now on."""
        self.record = replace(self.record, pid=init.pid, start_time=init.start_time)
        self.watch()

    def watch(self) -> None:
        """Have a `Wait` outstanding until the exit is known."""
        self._watcher = self.shim.watchers.start(exits.wait(self, self.id, "", self.pid), name=f"exit of {self.id}")

    def _stop_watching(self) -> None:
        """It is out of its shim, which would never answer a `Wait` that is still outstanding."""
        for watcher in (self._watcher, *(process.watcher for process in self.execs.values())):
            if watcher is not None:
                watcher.cancel()

    async def start(self) -> None:
        """Let the created container's init run its command. Not cut short by the caller's cancellation.

        Raises OrlopError: the shim's or engine's own text.
        """
        await failpoints.hit("runtime.task.start")
        await self.shim.supervisor.detached(self.shim.call("Start", StartRequest(id=self.id), StartResponse), name=f"Start of {self.id}")

    async def kill(self, signal_number: int, all: bool = False) -> None:  # noqa: A002  # the name that the shim's message has
        """Signal the init, or `all` processes of the container.

        Raises:
            NotFound: it has ended.
            DeadlineExceeded: no answer within its budget.
        """
        request = KillRequest(id=self.id, signal=signal_number, all=all)
        await within(timeouts.TASK_KILL, self.shim.call("Kill", request, Empty), f"Kill of {self.id}")

    async def wait(self) -> Exit:
        """The exit of its init, once it is known. A status that is lost with its shim is 255, with the cause in the message."""
        return await asyncio.shield(self._exit)

    async def state(self) -> StateResponse:
        """What the shim says of it.

        Raises:
            NotFound: the shim doesn't know it.
            DeadlineExceeded: no answer within its budget; older shims answer nothing while they create another container.
        """
        return await within(timeouts.SHIM_PING, self.shim.call("State", StateRequest(id=self.id), StateResponse), f"State of {self.id}")

    async def pids(self) -> list[int]:
        """The container's processes. An error means: unknown, never: none."""
        response = await within(timeouts.SHIM_PING, self.shim.call("Pids", PidsRequest(id=self.id), PidsResponse), f"Pids of {self.id}")
        return [process.pid for process in response.processes]

    async def update(self, resources: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
        """Change its cgroup's limits to those of `resources`, as in an OCI spec; what isn't named stays. Not cut short by the caller.

        Raises:
            NotFound: it has ended.
            DeadlineExceeded: no answer within its budget; the engine may still do it.
            OrlopError: the shim's or engine's own text.
        """
        request = UpdateTaskRequest(id=self.id, resources=options.pack_resources(resources), annotations=annotations)
        await failpoints.hit("runtime.task.update")
        call = within(timeouts.TASK_UPDATE, self.shim.call("Update", request, Empty), f"Update of {self.id}")
        await self.shim.supervisor.detached(call, name=f"Update of {self.id}")

    async def stats(self) -> AnyMessage:
        """What it uses, in a message of the shim's choice. For those in a sandbox of their own; of others the cgroup tells.

        Raises:
            NotFound: it has ended.
            DeadlineExceeded: no answer within its budget.
        """
        answer = await within(timeouts.SHIM_PING, self.shim.call("Stats", StatsRequest(id=self.id), StatsResponse), f"Stats of {self.id}")
        return answer.stats

    async def exec(
        self, exec_id: str, process: Mapping[str, Any], stdin: str, stdout: str, stderr: str, terminal: bool = False
    ) -> ExecProcess:
        """Register a further process, an OCI `process` object. It runs after its `start()`, and has to be deleted.

        Raises:
            AlreadyExists: there is one with this id.
            OrlopError: as the shim answered; after the init's exit, for one.
        """
        if exec_id in self.execs:
            raise AlreadyExists(f"container {self.id} already has exec {exec_id}")
        request = ExecProcessRequest(
            id=self.id, exec_id=exec_id, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr, spec=options.pack_process(process)
        )
        made = self.execs[exec_id] = ExecProcess(self, exec_id)
        await failpoints.hit("runtime.task.exec")
        try:
            await self.shim.call("Exec", request, Empty)
        except BaseException:
            self.execs.pop(exec_id, None)  # gone already if it was taken down meanwhile
            raise
        return made

    async def end_exec(self, exec_id: str) -> None:
        """Kill a further process, also one of an earlier daemon's, and have the shim forget it. Gone already: nothing happens.

        Raises:
            DeadlineExceeded: the shim waits for its output to be closed; the call goes on there.
        """
        process = self.execs.get(exec_id) or ExecProcess(self, exec_id)
        with suppress(NotFound, Closed):  # with its shim it has lost its container
            if process.exited is None:
                with suppress(OrlopError):  # one that never ran can't be signalled; whether it is at its end, Delete tells
                    await process.kill(signal.SIGKILL)
            await process.delete()

    # ---- the end

    def finish(self, exit_: Exit) -> bool:
        """Its init ended so; published, if it is the first to say so. Whether it was."""
        if self._exit.done():
            return False
        self._exit.set_result(exit_)
        self._exchange.publish(TaskExit(self.id, exit_))
        for process in list(self.execs.values()):
            if exit_.reason:  # the shim is lost, and with it what it knew of these
                process.finish(exits.lost(process.pid, exit_.message))
        return True

    def announce_delete(self) -> None:
        """Publish, once, that nothing of it is left."""
        if not self._delete_announced:
            self._delete_announced = True
            self._exchange.publish(TaskDelete(self.id))


class ExecProcess:
    """A further process of a container: made by `Task.exec`, started, waited for, deleted."""

    def __init__(self, task: Task, exec_id: str) -> None:
        self.id = exec_id
        self.pid = 0
        self.watcher: asyncio.Task[None] | None = None
        self._task = task
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def shim(self) -> Shim:
        return self._task.shim

    @property
    def exited(self) -> Exit | None:
        return self._exit.result() if self._exit.done() else None

    async def start(self) -> None:
        """Run it. If this raises, there is no exit to wait for, only `delete()` to call.

        Raises OrlopError: the engine's own text, for a command that doesn't exist for example.
        """
        await failpoints.hit("runtime.exec.start")
        request = StartRequest(id=self._task.id, exec_id=self.id)
        response = await self.shim.supervisor.detached(self.shim.call("Start", request, StartResponse), name=f"Start of exec {self.id}")
        self.pid = response.pid
        self.watcher = self.shim.watchers.start(exits.wait(self, self._task.id, self.id, self.pid), name=f"exit of exec {self.id}")

    async def kill(self, signal_number: int) -> None:
        """Signal it. Raises NotFound if it has ended, DeadlineExceeded."""
        request = KillRequest(id=self._task.id, exec_id=self.id, signal=signal_number)
        await within(timeouts.TASK_KILL, self.shim.call("Kill", request, Empty), f"Kill of exec {self.id}")

    async def wait(self) -> Exit:
        """Its exit, once it is known."""
        return await asyncio.shield(self._exit)

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters."""
        request = ResizePtyRequest(id=self._task.id, exec_id=self.id, width=width, height=height)
        await within(timeouts.SHIM_PING, self.shim.call("ResizePty", request, Empty), f"ResizePty of exec {self.id}")

    async def close_io(self) -> None:
        """Close the shim's end of its stdin; it sees the end of file when ours is closed as well."""
        request = CloseIORequest(id=self._task.id, exec_id=self.id, stdin=True)
        await within(timeouts.SHIM_PING, self.shim.call("CloseIO", request, Empty), f"CloseIO of exec {self.id}")

    async def delete(self) -> None:
        """Forget it in the shim; one that the shim doesn't know any more is forgotten already.

        Raises:
            DeadlineExceeded: the shim waits for its output to be closed; the call goes on there.
        """
        await self.shim.supervisor.detached(self._delete(), name=f"Delete of exec {self.id}")

    async def _delete(self) -> None:
        request = DeleteRequest(id=self._task.id, exec_id=self.id)
        with suppress(NotFound):
            await within(timeouts.TASK_DELETE, self.shim.call("Delete", request, DeleteResponse), f"Delete of exec {self.id}")
        self._task.execs.pop(self.id, None)
        self.finish(exits.lost(self.pid, "it was deleted before its exit was known"))

    def finish(self, exit_: Exit) -> bool:
        """It ended so, if this is the first to say so."""
        if self._exit.done():
            return False
        self._exit.set_result(exit_)
        return True
