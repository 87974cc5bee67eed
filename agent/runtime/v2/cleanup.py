"""Teardown of shims and of the containers in them: the only module that orders it. Everybody else calls one of four functions.

Read the table downwards; each row is one private function, and the bodies below call them in this order. A letter says when:
D after a dead shim, T for one task in order, F for one task whose create failed, S to shut down a shim that has no task left.

    step           when     what                                                               so that
    gate                 S  no Create gets in; those under way end, or their shim is killed    no Create is cut in half
    (lock)         D  T F S one teardown per shim (D, S) or task (T, F) at a time              nothing is torn down twice
    kill              T F   SIGKILL to the whole container, and its exit                       Wait answers; Delete would hide it
    task_delete       T F   Task.Delete; NotFound is as good                                   the shim has let go of it
    shutdown          * * S Task.Shutdown; Closed is as good                                   the shim exits by itself
    shim_dead      D  * * S its process has ended, by pidfd, and all in its cgroup; SIGKILL    no delete beside a living shim
    close          D  * * S connection, pidfd, log                                             the end is known to all who call
    then for each container of the shim (D: newest first, the sandbox last) or for the one (T, F):
      identify     D  T F   init's pid and start time, from the engine if Create told none     it can be looked for afterwards
      shim_delete  D  t F   `SHIM delete`, unless no Create was intended                       before anything else of it goes
      verify       D  T F   look: engine state, init, cgroup, mounts                           rc 0 is no proof
      reap         D  T F   kill what is left, and see it end                                  never a bundle without its owner
      unmount      D  T F   what is mounted in the bundle, in reverse order of making          the engine's delete came first
      engine_state D  T F   the engine's directory                                             the id can be used again
      cgroup       D  T F   the container's cgroup                                             the pod's can go
      bundle       D  T F   rename out of sight, remove; only if the three rows above worked   a retry needs it
      work_dir     D  T F   the same for the work dir
    socket         D  * * S unlink it, if a connect is refused                                 after the last container
    shim_cgroup    D  * * S its leaf
    shim_bundle          S  of a pinned shim: its own, not a container's
    publish        D  T     TaskExit (255, Unknown, cause) unless it is known; TaskDelete      once, and not before the end
    drop           D    F   out of the ledger; what failed stays in it, and is tried again     nothing is forgotten

    *  unless the shim is pinned: only when the task was its last one (Shutdown after every task)
    t  only if Delete left something

Every function runs to its end in a task of its own, whatever becomes of its caller, and each step has a budget. A step that
fails holds up only what depends on it: the rest of its container, never another one's. The exit is published as soon as no
process is left, though a mount may be. What drops the ledger's entries in T and S is `agent.store.release`, whose release
functions `delete_task` and `shutdown_shim` are: they raise while something is left, and are called again.

Why this order, and which field bugs are behind it: `agent/runtime/README.md`.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from agent import log, metrics, timeouts
from agent.aio import KeyedLock, Supervisor
from agent.api.runtime.task.v3.shim_pb2 import DeleteRequest, DeleteResponse, ShutdownRequest
from agent.errdefs import Closed, DeadlineExceeded, FailedPrecondition, NotFound, OrlopError
from agent.linux.holders import count_holders
from agent.linux.processes import Identity
from agent.runtime.v2 import exits, remains, shim_binary, shim_delete
from agent.runtime.v2.bundle import Bundles
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.engine import Engine
from agent.runtime.v2.node import Cgroups, Ledger, Mounts, Processes, Sockets
from agent.runtime.v2.remains import Remains
from agent.runtime.v2.shim import Shim, ShimState
from agent.runtime.v2.steps import Failures, failure_of, step
from agent.runtime.v2.task import Stage, Task
from agent.store.ledger import Kind
from agent.store.release import PartlyReleased

_log = log.get("runtime")

_RETRY = 1.0
"""Seconds until the ledger tries again what failed here."""


@dataclass(frozen=True)
class Node:
    """The world outside, as teardown needs it."""

    config: RuntimeConfig
    processes: Processes
    mounts: Mounts
    cgroups: Cgroups
    bundles: Bundles
    engine: Engine
    sockets: Sockets
    ledger: Ledger
    supervisor: Supervisor
    locks: KeyedLock


# ---- D: after a dead shim


async def cleanup_after_dead_shim(node: Node, shim: Shim, cause: str) -> None:
    """Take down what a shim left that died, or has to: it is killed first if it lives. Whoever notices calls this.

    `cause` is told as message of the exits that are lost with it. A second caller waits for the first. When it returns, what
    could not be freed is in the ledger as failed.

    Raises:
        DeadlineExceeded: its process doesn't end. Nothing of its containers was touched.
    """
    await node.supervisor.detached(_after_dead_shim(node, shim, cause), name=f"cleanup after shim {shim.id}")


async def _after_dead_shim(node: Node, shim: Shim, cause: str) -> None:
    async with node.locks.hold(_shim_key(shim)):
        if shim.state is ShimState.CLEANED:
            return
        await _shim_dead(node, shim)
        orphans = _orphaned(shim, cause)
        await failure_of(_close(node, shim))
        for task in orphans:
            task.failure = await failure_of(_free(node, task))
        shim.failure = await failure_of(_free_shim(node, shim))
        for task in orphans:
            if task.id == shim.id:  # else the sandbox answers for its shim, when it is shut down
                task.failure = task.failure or shim.failure
            task.failure = await failure_of(_publish(node, task, task.failure)) or task.failure
            await failure_of(_drop(node, task, task.failure))
        shim.cleaned()
    outcome = "incomplete" if any(task.failure for task in orphans) else "clean"
    metrics.dead_shim_cleanups.labels(outcome).inc()
    _log.warning("cleaned up after a dead shim", shim=shim.id, cause=cause, outcome=outcome, containers=[task.id for task in orphans])


# ---- T: one task, in order


async def delete_task(node: Node, task: Task) -> None:
    """Take down one task, in whatever stage it is: the release function of `Kind.TASK`. Idempotent; a second caller waits.

    Raises:
        PartlyReleased: no process of it is left, but something else is.
        OrlopError, OSError: it is not down; the shim's, engine's or kernel's own words.
    """
    await node.supervisor.detached(_delete_task(node, task), name=f"delete of {task.id}")


async def _delete_task(node: Node, task: Task) -> None:
    async with node.locks.hold(_task_key(task)):
        if task.stage is Stage.FREED:
            return
        failure = await failure_of(_take_down(node, task))
        await _publish(node, task, failure)
        if failure is not None:
            raise failure


async def _take_down(node: Node, task: Task) -> None:
    """What T and F have in common."""
    if task.stage is Stage.NEW:
        task.move(Stage.DELETED)
    elif task.stage is Stage.LIVE:
        try:
            await _kill(node, task)
            await _task_delete(node, task)
        except Closed:
            if task.shim.alive() and await task.shim.is_reached_again():
                raise
        except OrlopError as error:
            await _without_delete(node, task, error)
    if task.stage is not Stage.DELETED:
        await _free_orphan(node, task)
    elif task.shim.pinned:
        await _free(node, task)
    else:
        await _free_and_shut_down(node, task)


async def _without_delete(node: Node, task: Task, error: OrlopError) -> None:
    """Delete failed. Where no process of the container is left all the same, that must not hold up the pod.

    A busy rootfs makes Delete fail when all else is gone; and with crun it then goes on failing, as the engine's state is. For
    another reason, too, a shim may fail or say nothing for ever. What is left then goes when the pod does, with its shim.
    """
    left = await _verify(node, task, await _identify(node, task))
    if task.stage is not Stage.LIVE:  # its shim has died meanwhile
        return
    if left.pids:
        raise type(error)(f"{error}; of it there is {await node.cgroups.named(task.record.cgroup)}") from error
    task.ended = True
    if left.engine_state or isinstance(error, DeadlineExceeded):
        raise PartlyReleased(
            f"container {task.id} has no process any more, but its shim doesn't delete it: {error}. It is tried again; when the pod is "
            "stopped its shim is ended, and it goes without",
            {Kind.SNAPSHOT, Kind.CGROUP} if left else set(),
        ) from error
    if left.mounts:
        holders = await node.mounts.holders(task.bundle.rootfs)
        count_holders(holders)
        by = "; ".join(map(str, holders)) or "nobody that is to be seen"
        raise PartlyReleased(
            f"container {task.id} has no process any more, but its rootfs is busy, held by {by}. It stays, and is tried again",
            {Kind.SNAPSHOT},
        ) from error
    _log.warning("nothing is left of a container that its shim can't delete", container=task.id, error=str(error))
    task.move(Stage.DELETED)


async def _free_and_shut_down(node: Node, task: Task) -> None:
    """In a shim that isn't pinned. One after the other, as Kata wants it, and the last one ends the shim.

    So does the sandbox, in whose bundle the shim works: containers that it still has by then have no process, and can't be deleted.
    """
    shim = task.shim
    if task.id == shim.id and shim.tasks:
        await _end_with_what_it_has(node, shim)
    async with node.locks.hold(_shim_key(shim)):
        if shim.tasks:
            await failure_of(_shutdown(node, shim))
        elif shim.state not in (ShimState.DEAD, ShimState.CLEANED):
            await _end(node, shim)
        await _free(node, task)
        if shim.state is ShimState.DEAD or shim.failure is not None:
            await _free_shim(node, shim)
            shim.failure = None
            shim.cleaned()


async def _free_orphan(node: Node, task: Task) -> None:
    """Its shim is dead: that shim's cleanup frees it, or did, or tried; then it is tried again."""
    shim = task.shim
    former = task.failure if shim.state is ShimState.CLEANED else None
    await _after_dead_shim(node, shim, shim.how_it_died())
    if task.stage is Stage.FREED:
        return
    if task.failure is not None and task.failure is not former:
        raise task.failure
    async with node.locks.hold(_shim_key(shim)):
        task.failure = await failure_of(_free(node, task))
        if task.id == shim.id:
            task.failure = await failure_of(_free_shim(node, shim)) or task.failure
        if task.failure is not None:
            raise task.failure


# ---- F: one task whose create failed


async def cleanup_failed_create(node: Node, task: Task) -> None:
    """Take down what a create left that failed half-way. The shim may serve other containers: its connection stays open.

    Never raises for what it couldn't take down: that is in the ledger as failed, and the caller has a better error to tell.
    """
    await node.supervisor.detached(_failed_create(node, task), name=f"cleanup of failed create {task.id}")


async def _failed_create(node: Node, task: Task) -> None:
    async with node.locks.hold(_task_key(task)):
        if task.stage is Stage.FREED:
            return
        failure = await failure_of(_take_down(node, task))
        failure = await failure_of(_publish(node, task, failure)) or failure
        await failure_of(_drop(node, task, failure))


# ---- S: a shim without tasks


async def shutdown_shim(node: Node, shim: Shim) -> None:
    """End a shim and take down what is its own, its bundle if it is pinned: the release function of `Kind.SHIM`. Idempotent.

    Raises:
        FailedPrecondition: it still has tasks with processes; they go first.
        OrlopError, OSError: it is not down.
    """
    await node.supervisor.detached(_shutdown_shim(node, shim), name=f"shutdown of shim {shim.id}")


async def _shutdown_shim(node: Node, shim: Shim) -> None:
    try:
        await _gate(node, shim)
    except DeadlineExceeded:
        await _after_dead_shim(node, shim, "its shim was killed, because a create did not end while the sandbox was being stopped")
    if shim.tasks:
        await _end_with_what_it_has(node, shim)
    async with node.locks.hold(_shim_key(shim)):
        if shim.state not in (ShimState.DEAD, ShimState.CLEANED):
            await _end(node, shim)
        failures = Failures()
        with failures.kept():
            await _free_shim(node, shim)
        with failures.kept():
            await _shim_bundle(node, shim)
        failures.raise_first()
        shim.cleaned()


async def _end_with_what_it_has(node: Node, shim: Shim) -> None:
    """Of tasks without a process: it can't delete them, and would not exit by itself.

    Raises:
        FailedPrecondition: one has a process.
    """
    if not all(task.ended for task in shim.tasks.values()):
        raise FailedPrecondition(f"{shim} still has tasks, which go first: {', '.join(shim.tasks)}")
    await _after_dead_shim(node, shim, "")


async def _end(node: Node, shim: Shim) -> None:
    """End a shim that lives. The caller holds its lock, and it has no task."""
    await failure_of(_shutdown(node, shim))
    await _shim_dead(node, shim)
    _orphaned(shim, shim.how_it_died())  # of a create that came in meanwhile; it finds that out by itself
    await failure_of(_close(node, shim))


# ---- what all have in common: one container, whose shim has let go of it, or is dead


async def _free(node: Node, task: Task) -> None:
    """All that there is of a container outside of its shim.

    Raises:
        PartlyReleased: no process is left, but something else is.
        OrlopError, OSError: a process may be left; nothing behind `reap` was touched.
    """
    if task.gone:
        return
    init = await _identify(node, task)
    left = await _verify(node, task, init) if task.stage is Stage.DELETED and task.pid else None
    if left is None or left:
        says_done = task.record.create and await failure_of(_shim_delete(node, task)) is None
        left = await _verify(node, task, init)
        if says_done and left:
            metrics.shim_delete_lies.inc()
    if left.to_reap:
        await _reap(node, task, init, left)
    task.ended = True
    failures = Failures()
    with failures.kept(Kind.SNAPSHOT):
        await _unmount(node, task)
    with failures.kept():
        await _engine_state(node, task)
    with failures.kept(Kind.CGROUP):
        await _cgroup(node, task)
    failures.raise_partly_released(f"container {task.id}")
    with failures.kept():
        await _bundle(node, task)
        await _work_dir(node, task)
    failures.raise_partly_released(f"container {task.id}")
    task.gone = True


async def _free_shim(node: Node, shim: Shim) -> None:
    """What a dead shim leaves beside its containers. Raises PartlyReleased."""
    failures = Failures()
    with failures.kept():
        await _socket(node, shim)
    with failures.kept():
        await _shim_cgroup(node, shim)
    failures.raise_partly_released(f"shim {shim.id}")


# ---- the steps


@step("gate")
async def _gate(_: Node, shim: Shim) -> None:
    shim.gate.close()
    await shim.gate.wait_idle()


@step("kill")
async def _kill(_: Node, task: Task) -> None:
    """The whole container, as what its init leaves behind would keep its pipes. Without a pid it was never created."""
    if task.exited is not None or not task.pid:
        return
    try:
        await task.kill(signal.SIGKILL, all=True)
    except NotFound:  # it has ended, and Delete tells how
        return
    await task.wait()


@step("task_delete")
async def _task_delete(_: Node, task: Task) -> None:
    """Sent without a deadline: the shim would kill the engine that works for it. If it ends after our budget, NotFound tells that."""
    exit_ = None
    try:
        response = await task.shim.call("Delete", DeleteRequest(id=task.id), DeleteResponse)
        exit_ = exits.of_delete(response)
    except NotFound:
        pass
    if task.stage is not Stage.LIVE:  # the shim died right after its answer, and its cleanup was faster than we
        return
    task.move(Stage.DELETED)
    if exit_ is not None:  # else it is told when no process is left: a shim that took a dead one's place knows none of its containers
        task.finish(exit_)


@step("shutdown")
async def _shutdown(_: Node, shim: Shim) -> None:
    """A no-op for the shim while it has tasks. Its last answer is lost now and then, when it exits before that is written."""
    with suppress(Closed):
        await shim.call("Shutdown", ShutdownRequest(id=shim.id), Empty)
    if not shim.tasks and shim.process is not None:
        await shim.process.wait()


@step("shim_dead")
async def _shim_dead(node: Node, shim: Shim) -> None:
    """With all that works for it: an engine in the middle of a create would go on alone, and only so is a start helper known."""
    if shim.process is not None:
        shim.kill()
        await shim.process.wait()
    await node.cgroups.kill(node.config.shim_leaf(shim.id), timeouts.EXIT_AFTER_SHIM_KILL)


@step("close")
async def _close(_: Node, shim: Shim) -> None:
    await shim.close()


@step("identify")
async def _identify(node: Node, task: Task) -> Identity | None:
    return task.record.init or await node.engine.init(task.record)


@step("shim_delete")
async def _shim_delete(node: Node, task: Task) -> None:
    binary = await shim_binary.still_there(task.record.binary, task.shim.record.handler)
    if said := await shim_delete.run(node.config, node.processes, binary, task.bundle):
        _log.warning("shim delete said", container=task.id, text=said)


@step("verify")
async def _verify(node: Node, task: Task, init: Identity | None) -> Remains:
    return await remains.look(
        task.record, task.bundle, init, processes=node.processes, cgroups=node.cgroups, mounts=node.mounts, engine=node.engine
    )


@step("reap")
async def _reap(node: Node, task: Task, init: Identity | None, left: Remains) -> None:
    """By cgroup and pidfd first, which need nobody's help; then the engine, for what it keeps beside processes."""
    if left.pids:
        await remains.kill(task.record, init, processes=node.processes, cgroups=node.cgroups)
    if left.engine_state and task.record.engine:
        with suppress(OrlopError):  # its directory is removed below in any case
            await node.engine.delete(task.record)
    _log.warning("reaped what was left of a container", container=task.id, processes=sorted(left.pids), engine_state=left.engine_state)


@step("unmount")
async def _unmount(node: Node, task: Task) -> None:
    await node.mounts.unmount_all(task.bundle.path)


@step("engine_state")
async def _engine_state(node: Node, task: Task) -> None:
    await node.engine.remove_state(task.record)


@step("cgroup")
async def _cgroup(node: Node, task: Task) -> None:
    if task.record.cgroup:
        await node.cgroups.remove(task.record.cgroup)


@step("bundle")
async def _bundle(node: Node, task: Task) -> None:
    await node.bundles.remove(task.bundle)


@step("work_dir")
async def _work_dir(node: Node, task: Task) -> None:
    await node.bundles.remove_work_dir(task.bundle)


@step("socket")
async def _socket(node: Node, shim: Shim) -> None:
    for address in dict.fromkeys((shim.record.address, *node.config.socket_addresses(shim.id))):
        await node.sockets.remove_stale(address)


@step("shim_cgroup")
async def _shim_cgroup(node: Node, shim: Shim) -> None:
    await node.cgroups.remove(node.config.shim_leaf(shim.id))


@step("shim_bundle")
async def _shim_bundle(node: Node, shim: Shim) -> None:
    if shim.pinned:
        await node.bundles.remove(shim.bundle)
        await node.bundles.remove_work_dir(shim.bundle)


@step("publish")
async def _publish(_: Node, task: Task, failure: Exception | None) -> None:
    """The exit doesn't wait for what is still to be freed. What was never created has none: its create failed, and that is told."""
    if task.pid and task.ended:
        task.finish(exits.lost(task.pid, task.shim.cause or "its shim could not tell how it ended"))
    if failure is None and task.stage is not Stage.FREED:
        task.move(Stage.FREED)
        if task.pid:
            task.announce_delete()


@step("drop")
async def _drop(node: Node, task: Task, failure: Exception | None) -> None:
    if failure is None:
        await node.ledger.drop(Kind.TASK, task.id)
    else:
        await node.ledger.failed(Kind.TASK, task.id, str(failure), time.time() + _RETRY)


def _shim_key(shim: Shim) -> str:
    return f"shim {shim.id}"


def _task_key(task: Task) -> str:
    return f"task {task.id}"


def _orphaned(shim: Shim, cause: str) -> list[Task]:
    """Its process has ended: take over its tasks, without an await in between. In the order in which they are freed."""
    shim.died(cause)
    newest_first = list(reversed(shim.tasks.values()))
    orphans = sorted(newest_first, key=lambda task: task.record.is_sandbox)
    for task in orphans:
        task.move(Stage.ORPHANED)
    return orphans
