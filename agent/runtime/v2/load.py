"""After a restart of the daemon: finds its shims and tasks again, by what the ledger remembers (runtime-v2 section 9).

First it is found out whose process lives, for all, before anything may be taken down: without that a delete would take a shim
that isn't connected yet for a dead one. Then each shim is looked at beside the others and under its own budget. Dead is only
what its pidfd says is dead; a shim that doesn't answer in time keeps its containers and is asked again in the background,
however long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from agent import failpoints, log, timeouts
from agent.aio import in_thread
from agent.config.handlers import RuntimeHandler
from agent.errdefs import Closed, DataLoss, DeadlineExceeded, Internal, NotFound, OrlopError
from agent.events import Exchange
from agent.runtime.v2 import bootstrap, exits
from agent.runtime.v2.cleanup import Node
from agent.runtime.v2.records import ShimRecord, TaskRecord
from agent.runtime.v2.shim import Shim
from agent.runtime.v2.shim_log import ShimLog
from agent.runtime.v2.task import Stage, Task
from agent.store.ledger import Kind, Resource, State

_log = log.get("runtime")

_RETRY = 1.0
"""Seconds between two questions to a shim that didn't answer the first."""


@dataclass(frozen=True)
class Loaded:
    """What the ledger knows of. Of the shims it is known whether their process lives; nothing has been asked yet."""

    shims: dict[str, Shim]
    tasks: dict[str, Task]


async def remembered(node: Node, make_shim: Callable[[ShimRecord], Shim], exchange: Exchange) -> Loaded:
    """Shims and tasks as the ledger has them, tasks in the order of their creation. Raises OSError."""
    shims: dict[str, Shim] = {}
    tasks: dict[str, Task] = {}
    resources = node.ledger.all()
    for resource in resources:
        if resource.kind is Kind.SHIM:
            shim = shims[resource.key] = make_shim(_shim_record(resource, resources))
            if resource.state in (State.RELEASING, State.FAILED):
                shim.gate.close()
    for resource in resources:
        if resource.kind is Kind.TASK:
            task = tasks[resource.key] = _task(node, resource, shims, make_shim, exchange)
            if task.record.create:
                task.move(Stage.LIVE)
            task.settled.set()
    for shim in shims.values():
        if (identity := shim.record.identity) is not None:
            shim.process = await node.processes.open(identity.pid, identity.start_time)
    return Loaded(shims, tasks)


async def reach(node: Node, shim: Shim) -> bool:
    """Whether the shim's process lives. If so it is connected, or unknown for now; if not, its cleanup is due.

    Raises OSError: its log can't be read now; to be called again.
    """
    identity = shim.record.identity
    if identity is None or shim.process is None:
        return False
    await failpoints.hit("runtime.load.shim")
    try:
        shim.attach_log(await ShimLog.open(shim.id, shim.bundle.log))  # before anything else: without a reader it hangs
    except FileNotFoundError as error:
        _log.warning("the bundle of a shim is gone: nobody can read its log", shim=shim.id, error=str(error))
    try:
        found = await in_thread(bootstrap.read, shim.bundle.path)
        shim.record = shim.record.listening(found, identity)
    except (NotFound, Internal, OSError) as error:
        _log.warning("bundle without a usable bootstrap.json", shim=shim.id, error=str(error))
    try:
        await shim.reach(timeouts.SHIM_LOAD)
    except (OrlopError, OSError) as error:
        _log.warning("shim not reached yet; its containers are left alone", shim=shim.id, error=str(error))
    return True


async def adopt(node: Node, task: Task) -> None:
    """Find out what became of a task, as soon as its shim answers, and wait for its exit from then on."""
    while True:
        try:
            await task.shim.wait_connected()
            state = await task.state()
            if not task.pid and state.pid:
                await _learn_pid(node, task, state.pid)
        except NotFound:
            task.shim.watchers.start(_end_without_its_shim(node, task), name=f"end of {task.id}")
            return
        except Closed:
            if not await task.shim.wait_settled():
                return
        except DeadlineExceeded as error:
            _log.warning("a task's state is unknown for now", container=task.id, error=str(error))
        except (OrlopError, OSError) as error:
            _log.warning("a task's state can't be had", container=task.id, error=str(error))
        else:
            break
        await asyncio.sleep(_RETRY)
    task.watch()


async def _end_without_its_shim(node: Node, task: Task) -> None:
    """It has ended, unless the shim that it ran in died, could not be cleaned up after, and has a successor: then it may still run."""
    if not task.pid:
        return
    while True:
        try:
            process = await node.processes.open(task.pid, task.record.start_time)
            break
        except OSError as error:
            _log.warning("a process can't be looked at", container=task.id, process=task.pid, error=str(error))
            await asyncio.sleep(_RETRY)
    if process is not None:
        _log.warning("a container runs of which its shim doesn't know", container=task.id, process=task.pid)
        try:
            await process.wait()
        finally:
            process.close()
    task.finish(exits.lost(task.pid, "its shim didn't know it any more when the agent was started again"))


async def _learn_pid(node: Node, task: Task, pid: int) -> None:
    """The daemon died right after Create was answered."""
    process = await node.processes.open(pid)
    if process is not None:
        task.record = replace(task.record, pid=pid, start_time=process.identity.start_time)
        process.close()
        await node.ledger.hold(Kind.TASK, task.id, task.record.to_data())


def _task(node: Node, resource: Resource, shims: dict[str, Shim], make_shim: Callable[[ShimRecord], Shim], exchange: Exchange) -> Task:
    record = _task_record(resource)
    shim = shims.get(record.shim)
    if shim is None:
        own = ShimRecord.from_data(record.own_shim) if record.own_shim else _unknown_shim(record.shim, record.sandbox, pinned=False)
        shim = shims[record.shim] = make_shim(own)
    return Task(record, node.bundles.at(record.id), shim, exchange)


def _task_record(resource: Resource) -> TaskRecord:
    """An intent that was never acted on has no record: then nothing of it can be but a bundle."""
    try:
        return TaskRecord.from_data(resource.data)
    except DataLoss:
        return TaskRecord(
            id=resource.key,
            sandbox=resource.sandbox,
            shim=resource.sandbox,
            binary="",
            engine="",
            engine_root="",
            systemd_cgroup=False,
            cgroup="",
        )


def _shim_record(resource: Resource, resources: Iterable[Resource]) -> ShimRecord:
    """An intent that was never held: the process, if there is one, is who is in its cgroup."""
    try:
        return ShimRecord.from_data(resource.data)
    except DataLoss:
        with_task = any(other.kind is Kind.TASK and other.key == resource.key for other in resources)
        return _unknown_shim(resource.key, resource.sandbox, pinned=not with_task)


def _unknown_shim(shim_id: str, sandbox: str, *, pinned: bool) -> ShimRecord:
    return ShimRecord(id=shim_id, sandbox=sandbox, handler=RuntimeHandler(name=""), pinned=pinned, binary="")
