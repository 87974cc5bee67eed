"""The simulation notices a broken product: for each invariant one that breaks it, on purpose, and what is then said.

Each is played with some seeds; one that shows it is enough, as in real runs. Unbroken, the same schedules pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.errdefs import Unavailable
from agent.events import Exit, TaskExit
from agent.linux.holders import Holder
from agent.network import network
from agent.pods import context, recovery, sandbox_status
from agent.pods.registry import Table
from agent.runtime.v2 import cleanup, exits, load, shim
from agent.runtime.v2.bundle import Bundles
from agent.runtime.v2.shim import Shim
from agent.runtime.v2.task import Task
from agent.store.kinds import Kind
from agent.store.ledger import Ledger
from agent.store.release import Releases
from agent.store.resource import Resource
from tests.unit.simulation.node import Node
from tests.unit.simulation.play import play
from tests.unit.simulation.schedule import Op, Schedule

_SEEDS = 12

Patch = pytest.MonkeyPatch


class Mutation(NamedTuple):
    breaks: Callable[[Patch], None]
    schedule: Schedule
    says: str


def _start(handler: str = "2.1", container: int = 0) -> Op:
    return Op("start", container=container, how="wait", text=handler)


# ---- the broken products


def bundle_first(patch: Patch) -> None:
    """1: the bundle goes before its `shim delete`."""
    works = cleanup._shim_delete

    async def broken(node: Any, task: Any) -> None:
        with suppress(Exception):
            await Bundles.remove(node.bundles, task.bundle)
        await works(node, task)

    patch.setattr(cleanup, "_shim_delete", broken)


def unmounted_late(patch: Patch) -> None:
    """1: what is mounted in a bundle isn't waited for."""

    async def broken(node: Any, task: Any) -> None:
        pass

    patch.setattr(cleanup, "_unmount", broken)
    patch.setattr(cleanup, "_shim_delete", broken)


def not_waited_for(patch: Patch) -> None:
    """2: who deletes a container doesn't wait for the cleanup of its dead shim."""
    patch.setattr(cleanup, "_free_orphan", cleanup._free)


def shim_left_alive(patch: Patch) -> None:
    """3, 12: cleanup begins while the shim lives."""

    async def broken(node: Any, shim: Any) -> None:
        pass

    patch.setattr(cleanup, "_shim_dead", broken)


def told_twice(patch: Patch) -> None:
    """4: every source of an exit tells of it."""
    works = Task.finish

    def broken(self: Task, exit_: Exit) -> bool:
        if not works(self, exit_):
            self._exchange.publish(TaskExit(self.id, exit_))
        return True

    patch.setattr(Task, "finish", broken)


def lost_is_zero(patch: Patch) -> None:
    """4: an exit that nobody knows is told as a good one."""
    patch.setattr(exits, "lost", lambda pid, cause: Exit(0, 5, pid))


def sandbox_first(patch: Patch) -> None:
    """5: after a shim's death, the sandbox goes before its containers."""
    works = cleanup._orphaned
    patch.setattr(cleanup, "_orphaned", lambda shim, cause: works(shim, cause)[::-1])


def network_first(patch: Patch) -> None:
    """6: the network namespace goes with no regard to who uses it."""
    works = Resource.uses

    def broken(self: Resource, other: Resource, *rest: Any) -> bool:
        return other.kind is not Kind.NETNS and works(self, other, *rest)

    patch.setattr(Resource, "uses", broken)


def failure_forgotten(patch: Patch) -> None:
    """7: what can't be released is dropped."""
    works = Releases._failed

    def broken(self: Releases, resource: Resource, error: Exception) -> None:
        self._ledger.drop_nowait(*resource.id)

    assert works is not broken
    patch.setattr(Releases, "_failed", broken)


def cancelled_with_caller(patch: Patch) -> None:
    """8: a client that gives up ends the work."""

    async def broken(self: Any, key: str, work: Callable[[], Any]) -> Any:
        return await work()

    async def detached(self: Any, work: Any, *, name: str) -> Any:
        return await work

    patch.setattr(context.Pods, "once", broken)
    patch.setattr("agent.aio.supervisor.Supervisor.detached", detached)


def holders_unnamed(patch: Patch) -> None:
    """9: who keeps a mount busy isn't told."""
    patch.setattr(Holder, "__str__", lambda self: "somebody")


def nothing_replayed(patch: Patch) -> None:
    """10: what a crash left is not looked for."""

    async def broken(pods: Any, leftover: Any) -> None:
        pass

    patch.setattr(recovery, "_release", broken)


def everything_replayed(patch: Patch) -> None:
    """10: what still runs is taken down after a restart."""
    patch.setattr(recovery, "_is_owned", lambda pods, resource: resource.kind is not Kind.TASK)


def release_needs_disk(patch: Patch) -> None:
    """11: a ledger that can't be written stops releases."""
    works = Ledger.releasing

    def broken(self: Ledger, resources: Any) -> None:
        if any(database.problem for database in self._databases.values()):
            raise Unavailable("disk full")
        works(self, resources)

    patch.setattr(Ledger, "releasing", broken)


def mute_is_dead(patch: Patch) -> None:
    """12: a shim that doesn't answer after a restart is killed."""

    async def broken(node: Any, one: Shim) -> bool:
        if not await reach(node, one):
            return False
        if one.state is not shim.ShimState.CONNECTED:
            one.kill()
        return True

    reach = load.reach
    patch.setattr(load, "reach", broken)


def children_live_on(patch: Patch) -> None:
    """13: the plugins of a daemon that died work beside its successor's."""
    patch.setattr(Node, "end_children", lambda self, number: None)


def operations_at_once(patch: Patch) -> None:
    """13: nothing keeps two CNI operations on one sandbox apart."""

    @asynccontextmanager
    async def broken(self: Any, verb: Any, attachment: Any) -> AsyncIterator[None]:
        yield

    patch.setattr(network.Network, "_operation", broken)
    patch.setattr(network.Network, "delete", lambda self, attachment: _twice(self._delete, attachment))


async def _twice(work: Callable[[Any], Any], argument: Any) -> None:
    await asyncio.gather(work(argument), work(argument))


def lists_wait(patch: Patch) -> None:
    """14: a list takes a lock."""
    works = sandbox_status.list_pod_sandbox

    async def broken(pods: Any, request: Any) -> bytes:
        await asyncio.sleep(0)
        return await works(pods, request)

    patch.setattr(sandbox_status, "list_pod_sandbox", broken)


def lists_are_old(patch: Patch) -> None:
    """14: lists show what was true when an object was made."""
    works = Table._render

    def broken(self: Any, live: Any) -> None:
        if not live.item:
            works(self, live)

    patch.setattr(Table, "_render", broken)


CRASH = Op("failpoint", how="crash", number=1, text="pods.sandbox_run.record")
KILLED = [_start(), _start(container=1), Op("kill shim"), Op("pass", number=5)]

MUTATIONS = {
    "bundle_first": Mutation(bundle_first, KILLED, "(1)"),
    "unmounted_late": Mutation(unmounted_late, KILLED, "removed under a mount (1)"),
    "not_waited_for": Mutation(
        not_waited_for, [_start(), Op("end", number=1), Op("pass", number=0.01), Op("kill shim"), Op("pass", number=5)], "at once"
    ),
    "shim_left_alive": Mutation(
        shim_left_alive, [_start(), Op("crash"), Op("stop shim"), Op("stop", how="wait", number=0.1)], "while its shim lives"
    ),
    "told_twice": Mutation(told_twice, [_start(), Op("end", number=3), Op("pass", number=1)], "told twice (4)"),
    "lost_is_zero": Mutation(lost_is_zero, KILLED, "told is 0 (4)"),
    "sandbox_first": Mutation(sandbox_first, [_start("2.1-task"), Op("kill shim"), Op("pass", number=5)], "before that of its container"),
    "network_first": Mutation(network_first, [_start(), Op("remove pod", how="wait")], "(6)"),
    "failure_forgotten": Mutation(failure_forgotten, [_start(), Op("hold rootfs"), Op("remove", how="wait"), Op("let go")], "(7)"),
    "cancelled_with_caller": Mutation(cancelled_with_caller, [Op("run", how="cancel", number=0.02, text="2.1")] * 6, "cut off"),
    "holders_unnamed": Mutation(
        holders_unnamed, [_start(), Op("hold rootfs"), Op("remove", how="wait"), Op("pass", number=1), Op("let go")], "(9)"
    ),
    "nothing_replayed": Mutation(
        nothing_replayed,
        [CRASH, Op("run", how="wait", text="2.1")],
        "left:",
    ),
    "nothing_replayed_after_a_power_cut": Mutation(
        nothing_replayed, [_start(), Op("power cut"), Op("restart"), Op("pass", number=5)], "left: address"
    ),
    "everything_replayed": Mutation(
        everything_replayed, [_start(), Op("crash"), Op("restart"), Op("pass", number=5)], "nobody asked for it"
    ),
    "release_needs_disk": Mutation(release_needs_disk, [_start(), Op("fill disk"), _start(container=1)], "(11)"),
    "mute_is_dead": Mutation(
        mute_is_dead, [_start(), Op("stop shim"), Op("crash"), Op("restart"), Op("pass", number=10)], "nobody asked for it (12)"
    ),
    "children_live_on": Mutation(
        children_live_on,
        [Op("fault", how="slow", text="cni ADD"), Op("run", how="beside", number=0.05, text="2.1"), Op("crash"), Op("restart")],
        "while another CNI operation for it runs",
    ),
    "operations_at_once": Mutation(operations_at_once, [_start(), Op("remove pod", how="wait")], "while another CNI operation"),
    "lists_wait": Mutation(lists_wait, [_start()], "ListPodSandbox waits"),
    "lists_are_old": Mutation(lists_are_old, [_start(), Op("stop pod", how="wait")], "are old (14)"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_is_noticed(name: str, directory: Path, monkeypatch: Patch) -> None:
    mutation = MUTATIONS[name]
    assert play(0, mutation.schedule, directory).problems == [], "nothing is wrong without it"
    mutation.breaks(monkeypatch)
    said: list[str] = []
    for seed in range(_SEEDS):
        try:
            said += play(seed, mutation.schedule, directory).problems
        except Exception as error:
            said.append(repr(error))
        if any(mutation.says in problem for problem in said):
            return
    pytest.fail(f"not noticed; {said}")
