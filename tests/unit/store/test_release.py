"""The release walker: order, what a failure holds up and what not, retries, single flight, detachment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import tenacity

from agent import failpoints, timeouts
from agent.errdefs import Busy, DeadlineExceeded, Internal
from agent.store.kinds import Kind
from agent.store.ledger import Intent, Resource, ResourceId, State
from agent.store.release import Blocked, PartlyReleased, Releases
from agent.store.store import Store
from tests.unit.store.conftest import Clock, Directories, databases, make_unwritable, make_writable
from tests.unit.store.inline_writer import InlineWriter

POD = (Kind.SHIM, Kind.CNI, Kind.NETNS, Kind.IPCNS, Kind.UTSNS, Kind.SHM, Kind.CGROUP, Kind.SANDBOX_DIR)
CONTAINER = (Kind.TASK, Kind.LOG, Kind.FIFO, Kind.SNAPSHOT)


class Node:
    """Release functions that write down their calls and fail on demand."""

    def __init__(self, releases: Releases) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.hanging: dict[str, asyncio.Event] = {}
        for kind in Kind:
            releases.register(kind, self.release)

    async def release(self, resource: Resource) -> None:
        name = f"{resource.kind} {resource.container or 'pod'}"
        self.calls.append(name)
        if name in self.hanging:
            await self.hanging[name].wait()
        if name in self.errors:
            raise self.errors[name]


@pytest.fixture
async def store(directories: Directories, clock: Clock) -> AsyncIterator[Store]:
    store = await Store.open(directories.state, directories.root, clock=clock, boot_id="boot 1", writer=InlineWriter)
    yield store
    await store.close()


@pytest.fixture
async def releases(store: Store, clock: Clock) -> AsyncIterator[Releases]:
    releases = Releases(store.ledger, clock, wait=tenacity.wait_exponential(multiplier=1, max=60))
    yield releases
    await releases.stop(0)


@pytest.fixture
def node(releases: Releases) -> Node:
    return Node(releases)


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.configure("")


async def _pod(store: Store, *containers: str, sandbox: str = "s") -> None:
    await store.ledger.intend(*(Intent(kind, f"{sandbox} {kind}", sandbox) for kind in POD))
    for container in containers:
        await store.ledger.intend(*(Intent(kind, f"{container} {kind}", sandbox, container) for kind in CONTAINER))


def _kinds(resources: list[Resource]) -> set[str]:
    return {f"{resource.kind} {resource.container or 'pod'}" for resource in resources}


async def _settled() -> None:
    """Let everything that can go on go on; there is no thread and no timer in these tests."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_whole_pod(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1", "c2")
    assert await releases.release_owned(sandbox="s") == []
    assert store.ledger.all() == []
    position = {call: node.calls.index(call) for call in node.calls}
    assert len(position) == len(node.calls) == 16
    assert position["task c2"] < position["task c1"] < position["log c1"] < position["fifo c1"]
    assert position["task c1"] < position["shim pod"] < position["cni pod"] < position["netns pod"]
    assert position["shm pod"] < position["sandbox_dir pod"]


async def test_callers_order_doesnt_matter(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1", "c2")
    assert await releases.release(store.ledger.all()) == []  # the oldest first
    assert node.calls.index("task c2") < node.calls.index("task c1") < node.calls.index("shim pod")


async def test_nothing_owned(releases: Releases) -> None:
    assert await releases.release_owned(sandbox="nobody") == []
    assert await releases.release([]) == []


async def test_one_container_leaves_the_others_alone(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1", "c2")
    assert await releases.release_owned(container="c1") == []
    assert set(node.calls) == {"task c1", "log c1", "fifo c1", "snapshot c1"}
    assert len(store.ledger.owned(sandbox="s")) == 12


@pytest.mark.field_fault("30")
async def test_failure_blocks_only_what_it_depends_on(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    node.errors["cni pod"] = Busy("the plugin said no")
    left = await releases.release_owned(sandbox="s")
    assert _kinds([resource for resource, _ in left]) == {"cni pod", "netns pod"}
    assert [type(error) for _, error in left] == [Busy, Blocked]
    assert "netns pod" not in node.calls
    assert str(left[1][1]) == "netns s netns is released after cni s cni, which is failed: the plugin said no"
    assert _kinds(store.ledger.all()) == {"cni pod", "netns pod"}


async def test_failed_task_keeps_all_that_it_stands_on(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1", "c2")
    node.errors["task c1"] = RuntimeError("unkillable")
    left = await releases.release_owned(sandbox="s")
    assert {"log c2", "fifo c2", "snapshot c2"} <= set(node.calls), "the other container's are independent"
    assert _kinds([resource for resource, _ in left]) == {f"{kind} c1" for kind in CONTAINER} | {f"{kind} pod" for kind in POD}


async def test_pinned_rootfs_keeps_the_snapshot_but_not_the_network(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    node.errors["task c1"] = PartlyReleased("rootfs is pinned by pid 7 (tail)", {Kind.SNAPSHOT})
    left = await releases.release_owned(sandbox="s")
    assert _kinds([resource for resource, _ in left]) == {"task c1", "snapshot c1"}
    node.errors.clear()
    assert await releases.release_owned(sandbox="s") == []


async def test_full_failure_after_a_partial_one_keeps_everything_again(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    node.errors["task c1"] = PartlyReleased("pinned", {Kind.SNAPSHOT})
    node.errors["shim pod"] = Busy("x")
    await releases.release_owned(sandbox="s")
    node.errors = {"task c1": Busy("unknown")}
    left = await releases.release_owned(sandbox="s")
    assert {"shim pod", "netns pod"} <= _kinds([resource for resource, _ in left])


async def test_network_doesnt_wait_for_what_has_let_go_of_it(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    for name in (ResourceId(Kind.TASK, "c1 task"), ResourceId(Kind.SHIM, "s shim")):
        releases.no_longer_uses(name, {Kind.CNI})
    node.hanging["task c1"] = asyncio.Event()
    walk = asyncio.ensure_future(releases.release_owned(sandbox="s"))
    await _settled()
    assert {"cni pod", "task c1"} <= set(node.calls)
    assert not {"shim pod", "netns pod", "log c1"} & set(node.calls), "the rest waits as ever"
    node.hanging["task c1"].set()
    assert await walk == []


async def test_what_fails_after_it_let_go_uses_everything_again(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    for name in (ResourceId(Kind.TASK, "c1 task"), ResourceId(Kind.SHIM, "s shim")):
        releases.no_longer_uses(name, {Kind.CNI})
    node.errors = {"task c1": Busy("it lives after all"), "cni pod": Busy("x")}
    await releases.release_owned(sandbox="s")
    node.errors = {"task c1": Busy("it lives after all")}
    node.calls.clear()
    left = await releases.release_owned(sandbox="s")
    assert "cni pod" in _kinds([resource for resource, _ in left])
    assert "cni pod" not in node.calls


async def test_sandbox_task_waits_for_its_containers_tasks(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    await store.ledger.intend(Intent(Kind.TASK, "s", "s"))
    node.errors["task c1"] = Busy("x")
    await releases.release_owned(sandbox="s")
    assert "task pod" not in node.calls
    node.errors.clear()
    await releases.release_owned(sandbox="s")
    assert node.calls.index("task c1") < node.calls.index("task pod") < node.calls.index("shim pod")


async def test_used_resource_is_not_released_alone(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    netns = store.ledger.get(Kind.NETNS, "s netns")
    assert netns is not None
    ((_, error),) = await releases.release([netns])
    assert isinstance(error, Blocked)
    assert node.calls == []


async def test_pods_dont_hold_up_each_other(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, sandbox="s")
    await _pod(store, sandbox="t")
    await store.ledger.intend(Intent(Kind.TASK, "task", "s", "c1"))
    node.errors["task c1"] = Busy("x")
    assert await releases.release_owned(sandbox="t") == []


async def test_independent_releases_run_side_by_side(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1", "c2")
    node.hanging = {"task c1": asyncio.Event(), "task c2": asyncio.Event()}
    walk = asyncio.create_task(releases.release_owned(sandbox="s"))
    await _settled()
    assert node.calls == ["task c2", "task c1"]
    node.hanging["task c1"].set()
    await _settled()
    assert {"log c1", "fifo c1", "snapshot c1"} <= set(node.calls)
    assert "shim pod" not in node.calls
    node.hanging["task c2"].set()
    assert await walk == []


async def test_missing_release_function(store: Store, releases: Releases) -> None:
    await store.ledger.intend(Intent(Kind.FIFO, "f", "s"))
    ((_, error),) = await releases.release_owned(sandbox="s")
    assert isinstance(error, Internal)
    assert [resource.state for resource in store.ledger.all()] == [State.FAILED]


# ---- single flight, detachment, budgets


async def test_one_attempt_at_a_time(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store)
    node.hanging["shim pod"] = asyncio.Event()
    callers = [asyncio.create_task(releases.release_owned(sandbox="s")) for _ in range(3)]
    await _settled()
    assert node.calls.count("shim pod") == 1
    node.hanging["shim pod"].set()
    assert await asyncio.gather(*callers) == [[], [], []]
    assert sorted(node.calls) == sorted(f"{kind} pod" for kind in POD)


async def test_callers_share_a_failure(store: Store, releases: Releases, node: Node) -> None:
    await store.ledger.intend(Intent(Kind.SHIM, "s", "s"))
    node.hanging["shim pod"] = asyncio.Event()
    node.errors["shim pod"] = Busy("x")
    callers = [asyncio.create_task(releases.release_owned(sandbox="s")) for _ in range(2)]
    await _settled()
    node.hanging["shim pod"].set()
    assert [[str(error) for _, error in left] for left in await asyncio.gather(*callers)] == [["x"], ["x"]]
    assert [resource.attempts for resource in store.ledger.all()] == [1]


async def test_callers_cancellation_doesnt_reach_the_release(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store, "c1")
    node.hanging["task c1"] = asyncio.Event()
    caller = asyncio.create_task(releases.release_owned(sandbox="s"))
    await _settled()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    node.hanging["task c1"].set()
    await _settled()
    assert store.ledger.all() == []


async def test_hanging_release_is_given_up_and_stays_owned(
    store: Store, releases: Releases, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "RELEASE", 0)
    await store.ledger.intend(Intent(Kind.SHIM, "s", "s"))
    node.hanging["shim pod"] = asyncio.Event()
    ((_, error),) = await releases.release_owned(sandbox="s")
    assert isinstance(error, DeadlineExceeded)
    assert [(resource.state, resource.attempts) for resource in store.ledger.all()] == [(State.FAILED, 1)]


async def test_stop_leaves_a_running_release_in_the_ledger(store: Store, releases: Releases, node: Node, clock: Clock) -> None:
    await _pod(store)
    node.hanging["shim pod"] = asyncio.Event()
    caller = asyncio.create_task(releases.release_owned(sandbox="s"))
    await _settled()
    await releases.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "shim pod" in _kinds(store.ledger.due(clock.now))


async def test_act_that_worked_is_dropped_without_a_writable_ledger(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store)
    for database in databases(store):
        await make_unwritable(database)
    assert await releases.release_owned(sandbox="s") == []
    assert store.ledger.all() == []
    assert store.ledger.unwritten == len(POD)


# ---- retries


async def test_backoff_grows_and_survives_a_restart(
    store: Store, releases: Releases, node: Node, clock: Clock, directories: Directories
) -> None:
    await store.ledger.intend(Intent(Kind.CNI, "s", "s"))
    node.errors["cni pod"] = Busy("x")

    async def pause(of: Releases, ledger_of: Store) -> float:
        await of.release_owned(sandbox="s")
        (resource,) = ledger_of.ledger.all()
        assert resource.next_attempt is not None
        return resource.next_attempt - clock.now

    assert [await pause(releases, store) for _ in range(3)] == [1, 2, 4]
    await store.close()
    again = await Store.open(directories.state, directories.root, clock=clock, boot_id="boot 2", writer=InlineWriter)
    later = Releases(again.ledger, clock, wait=tenacity.wait_exponential(multiplier=1, max=60))
    Node(later).errors["cni pod"] = Busy("x")
    assert [await pause(later, again) for _ in range(5)] == [8, 16, 32, 60, 60]
    await later.stop(0)
    await again.close()


async def test_default_backoff_is_jittered_and_bounded(store: Store, clock: Clock) -> None:
    releases = Releases(store.ledger, clock)
    pauses = [releases._pause(attempts) for attempts in (1, 2, 3, 20, 5000)]
    assert 1 <= pauses[0] <= 2 <= pauses[1] <= 3 < 4 <= pauses[2] <= 5
    assert pauses[3:] == [300, 300]


class Sleeper:
    """The pause of `run_pending`: moves the clock, and ends the loop after so many turns."""

    def __init__(self, clock: Clock, turns: int, each: Callable[[], Coroutine[Any, Any, None]] = _settled) -> None:
        self.stop = asyncio.Event()
        self._clock = clock
        self._turns = turns
        self._each = each

    async def __call__(self, seconds: float) -> None:
        await self._each()
        self._clock.now += seconds
        self._turns -= 1
        if not self._turns:
            self.stop.set()


async def test_pending_releases_are_tried_until_they_work(store: Store, clock: Clock) -> None:
    sleeper = Sleeper(clock, turns=20)
    releases = Releases(store.ledger, clock, sleep=sleeper, wait=tenacity.wait_exponential(multiplier=1, max=60))
    node = Node(releases)
    await _pod(store, "c1")
    started = clock.now
    node.errors["task c1"] = Busy("x")
    await releases.release_owned(sandbox="s")

    async def heal_after_ten_seconds() -> None:
        if clock.now >= started + 10:
            node.errors.clear()
        await _settled()

    sleeper._each = heal_after_ten_seconds
    await releases.run_pending(sleeper.stop)
    assert store.ledger.all() == []
    assert node.calls.count("task c1") == 5  # at 0, 1, 3, 7, 15 s
    assert node.calls.count("shim pod") == 1, "what is blocked isn't tried"
    await releases.stop(0)


@pytest.mark.field_fault("2")
async def test_retries_of_other_owners_dont_wait_for_one_that_hangs(store: Store, clock: Clock) -> None:
    sleeper = Sleeper(clock, turns=5)
    releases = Releases(store.ledger, clock, sleep=sleeper, wait=tenacity.wait_none())
    node = Node(releases)
    await store.ledger.intend(Intent(Kind.SHIM, "s", "s"), Intent(Kind.FIFO, "f", "t", "c9"), Intent(Kind.INGEST, "i", ""))
    store.ledger.releasing(store.ledger.all())
    node.hanging["shim pod"] = asyncio.Event()
    await releases.run_pending(sleeper.stop)
    assert _kinds(store.ledger.all()) == {"shim pod"}
    assert node.calls.count("shim pod") == 1
    assert "3 tasks" in repr(releases._supervisor), "one walk, however long it hangs"
    node.hanging["shim pod"].set()
    await _settled()
    assert store.ledger.all() == []
    await releases.stop(0)


async def test_held_resources_are_left_alone(store: Store, clock: Clock) -> None:
    sleeper = Sleeper(clock, turns=3)
    releases = Releases(store.ledger, clock, sleep=sleeper)
    node = Node(releases)
    await _pod(store, "c1")
    await store.ledger.hold(Kind.NETNS, "s netns")
    await releases.run_pending(sleeper.stop)
    assert node.calls == []
    await releases.stop(0)


async def test_nothing_is_started_for_what_is_blocked(store: Store, releases: Releases, node: Node) -> None:
    await _pod(store)
    node.errors["shim pod"] = Busy("x")
    await releases.release_owned(sandbox="s")
    releases.start_due()
    assert "0 tasks" in repr(releases._supervisor)


async def test_pending_writes_are_tried_again(store: Store, clock: Clock) -> None:
    sleeper = Sleeper(clock, turns=2)
    releases = Releases(store.ledger, clock, sleep=sleeper)
    await store.ledger.intend(Intent(Kind.FIFO, "f", "s"))
    boot, _ = databases(store)
    await make_unwritable(boot)
    await store.ledger.drop(Kind.FIFO, "f")
    await make_writable(boot)
    await releases.run_pending(sleeper.stop)
    assert store.ledger.unwritten == 0
    await releases.stop(0)


@pytest.mark.parametrize("point", ["store.release.act", "store.release.drop"])
async def test_failpoints(store: Store, releases: Releases, node: Node, point: str) -> None:
    await store.ledger.intend(Intent(Kind.FIFO, "f", "s"))
    failpoints.configure(f"{point}=1*error(x)")
    ((_, error),) = await releases.release_owned(sandbox="s")
    assert isinstance(error, Internal)
    assert len(node.calls) == (1 if point.endswith("drop") else 0)
    assert await releases.release_owned(sandbox="s") == []
