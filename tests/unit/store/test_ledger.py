"""intend, hold, drop, failed: what they do to reads, to the database, and when there is no writing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent import failpoints, metrics
from agent.errdefs import AlreadyExists, Internal, NotFound, Unavailable
from agent.store.kinds import RELEASE_ORDER, Kind
from agent.store.ledger import Intent, Ledger, Resource, ResourceId, State
from agent.store.store import Store
from tests.unit.store.conftest import Clock, Directories, databases, make_unwritable, make_writable


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return store.ledger


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.configure("")


async def _reopened(store: Store, directories: Directories, clock: Clock) -> list[Resource]:
    """What a restart finds; the caller's store is closed."""
    await store.close()
    again = await directories.open(clock)
    found = again.ledger.all()
    await again.close()
    return found


async def test_life_of_a_resource(ledger: Ledger, clock: Clock) -> None:
    await ledger.intend(Intent(Kind.NETNS, "/run/netns/a", sandbox="s1", data={"mode": "pod"}))
    intended = ledger.get(Kind.NETNS, "/run/netns/a")
    assert intended == Resource(Kind.NETNS, "/run/netns/a", "s1", "", State.INTENDED, {"mode": "pod"}, 0, "", clock.now, None, None)
    clock.now += 1
    await ledger.hold(Kind.NETNS, "/run/netns/a", {"inode": 4026531992})
    held = replace(intended, state=State.HELD, data={"mode": "pod", "inode": 4026531992})
    assert ledger.get(Kind.NETNS, "/run/netns/a") == held
    assert ledger.owned(sandbox="s1") == [held]
    await ledger.drop(Kind.NETNS, "/run/netns/a")
    assert ledger.get(Kind.NETNS, "/run/netns/a") is None
    assert ledger.all() == ledger.owned(sandbox="s1") == []
    assert ledger._mirror._by_sandbox == ledger._mirror._by_container == {}, "nothing grows with pods that are gone"
    await ledger.drop(Kind.NETNS, "/run/netns/a")


async def test_restart_finds_everything(store: Store, directories: Directories, clock: Clock) -> None:
    ledger = store.ledger
    await ledger.intend(
        Intent(Kind.NETNS, "n", sandbox="s1"),
        Intent(Kind.CNI, "s1", sandbox="s1", data={"conf": "{}", "args": ["a", 1, None, True]}),
        Intent(Kind.TASK, "c1", sandbox="s1", container="c1"),
        Intent(Kind.SNAPSHOT, "c1", sandbox="s1", container="c1"),
    )
    await ledger.hold(Kind.NETNS, "n", {"inode": 7})
    await ledger.failed(Kind.CNI, "s1", "plugin said no", next_attempt=clock.now + 5)
    await ledger.drop(Kind.TASK, "c1")
    before = ledger.all()
    assert sorted(await _reopened(store, directories, clock), key=str) == sorted(before, key=str)
    assert len(before) == 3


async def test_key_that_is_taken(ledger: Ledger) -> None:
    await ledger.intend(Intent(Kind.FIFO, "f", sandbox="s1"))
    with pytest.raises(AlreadyExists, match="fifo f is intended in the ledger already, for sandbox s1"):
        await ledger.intend(Intent(Kind.LOG, "l", sandbox="s2"), Intent(Kind.FIFO, "f", sandbox="s2"))
    assert ledger.owned(sandbox="s2") == []
    with pytest.raises(AlreadyExists):
        await ledger.intend(Intent(Kind.LOG, "l", sandbox="s2"), Intent(Kind.LOG, "l", sandbox="s2"))
    assert ledger.owned(sandbox="s2") == []
    await ledger.intend(Intent(Kind.LOG, "f", sandbox="s2"))  # the same key, of another kind


async def test_two_at_once_for_one_key(ledger: Ledger) -> None:
    outcomes = await asyncio.gather(
        ledger.intend(Intent(Kind.FIFO, "f", sandbox="s1")), ledger.intend(Intent(Kind.FIFO, "f", sandbox="s2")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), AlreadyExists]
    assert [resource.sandbox for resource in ledger.all()] == ["s1"]


async def test_data_that_isnt_json_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(TypeError):
        await ledger.intend(Intent(Kind.FIFO, "f", sandbox="s", data={"fd": object()}))
    assert ledger.all() == []
    await ledger.intend(Intent(Kind.FIFO, "f", sandbox="s"))
    with pytest.raises(TypeError):
        await ledger.hold(Kind.FIFO, "f", {"fd": object()})
    assert [resource.state for resource in ledger.all()] == [State.INTENDED]


async def test_hold_without_intent(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="fifo f is not in the ledger"):
        await ledger.hold(Kind.FIFO, "f")


async def test_hold_doesnt_take_back_a_release(ledger: Ledger, clock: Clock) -> None:
    """A slow act that ends after its rollback has begun: what it tells is kept, the release stays decided."""
    await ledger.intend(Intent(Kind.SHIM, "s", sandbox="s"))
    ledger.releasing(ledger.all())
    await ledger.hold(Kind.SHIM, "s", {"pid": 5})
    assert [(resource.state, resource.data) for resource in ledger.all()] == [(State.RELEASING, {"pid": 5})]
    await ledger.failed(Kind.SHIM, "s", "no", next_attempt=clock.now)
    await ledger.hold(Kind.SHIM, "s", {"pid": 6})
    assert [(resource.state, resource.data) for resource in ledger.all()] == [(State.FAILED, {"pid": 6})]


async def test_failures_are_counted_and_dated(ledger: Ledger, clock: Clock) -> None:
    await ledger.intend(Intent(Kind.CNI, "s", sandbox="s"))
    await ledger.failed(Kind.CNI, "s", "first", next_attempt=clock.now + 1)
    first = clock.now
    clock.now += 10
    ledger.releasing(ledger.all())
    await ledger.failed(Kind.CNI, "s", "second \udcff", next_attempt=clock.now + 2)
    (resource,) = ledger.all()
    assert (resource.attempts, resource.error, resource.failed_since, resource.next_attempt) == (2, "second \\udcff", first, clock.now + 2)
    await ledger.failed(Kind.CNI, "gone", "x", next_attempt=0)
    assert ledger.get(Kind.CNI, "gone") is None


async def test_due(ledger: Ledger, clock: Clock) -> None:
    await ledger.intend(*(Intent(Kind.FIFO, key, sandbox="s") for key in ("held", "later", "now", "cut off")))
    await ledger.hold(Kind.FIFO, "held")
    await ledger.failed(Kind.FIFO, "later", "x", next_attempt=clock.now + 5)
    await ledger.failed(Kind.FIFO, "now", "x", next_attempt=clock.now)
    ledger.releasing([resource for resource in ledger.all() if resource.key == "cut off"])
    assert {resource.key for resource in ledger.due(clock.now)} == {"now", "cut off"}
    assert {resource.key for resource in ledger.due(clock.now + 5)} == {"now", "cut off", "later"}


async def test_release_that_was_cut_off_is_due_after_a_restart(store: Store, directories: Directories, clock: Clock) -> None:
    await store.ledger.intend(Intent(Kind.FIFO, "f", sandbox="s"))
    store.ledger.releasing(store.ledger.all())
    (resource,) = await _reopened(store, directories, clock)
    assert resource.due(clock.now)


async def test_owned_is_in_release_order(ledger: Ledger) -> None:
    for container in ("c1", "c2"):
        await ledger.intend(
            *(Intent(kind, f"{kind} {container}", "s", container) for kind in (Kind.SNAPSHOT, Kind.TASK, Kind.LOG, Kind.FIFO))
        )
    pod = [kind for kind in RELEASE_ORDER if kind not in (Kind.SNAPSHOT, Kind.LOG, Kind.FIFO)]
    await ledger.intend(*(Intent(kind, f"{kind} pod", "s") for kind in pod))
    await ledger.intend(Intent(Kind.TASK, "stranger", "t", "c9"))
    owned = ledger.owned(sandbox="s")
    assert [RELEASE_ORDER.index(resource.kind) for resource in owned] == sorted(RELEASE_ORDER.index(resource.kind) for resource in owned)
    assert [resource.key for resource in owned if resource.kind is Kind.TASK] == ["task c2", "task c1", "task pod"]
    assert [resource.kind for resource in ledger.owned(container="c1")] == [kind for kind in RELEASE_ORDER if kind in {
        Kind.TASK, Kind.LOG, Kind.FIFO, Kind.SNAPSHOT,
    }]  # fmt: skip
    assert {resource.container for resource in ledger.owned(sandbox="s", container="")} == {""}
    assert ledger.owned(sandbox="t", container="c1") == []
    with pytest.raises(TypeError):
        ledger.owned()


async def test_newest_first_survives_a_restart_and_changes(store: Store, directories: Directories, clock: Clock) -> None:
    for container in ("c1", "c2", "c3"):
        await store.ledger.intend(Intent(Kind.TASK, container, "s", container))
    await store.ledger.hold(Kind.TASK, "c1")
    assert [resource.key for resource in store.ledger.owned(sandbox="s")] == ["c3", "c2", "c1"]
    assert [resource.key for resource in await _reopened(store, directories, clock)] == ["c1", "c2", "c3"]


async def test_what_nobody_owns_is_not_a_sandboxs(ledger: Ledger) -> None:
    await ledger.intend(Intent(Kind.INGEST, "sha256-1", sandbox=""), Intent(Kind.FIFO, "f", sandbox="s"))
    assert [resource.key for resource in ledger.owned(sandbox="s")] == ["f"]
    assert [resource.owner for resource in ledger.all()] == ["ingest sha256-1", "sandbox s"]


async def test_to_json_shares_nothing(ledger: Ledger) -> None:
    await ledger.intend(Intent(Kind.CNI, "s", sandbox="s", data={"args": {"a": [1]}}))
    (resource,) = ledger.all()
    shown = resource.to_json()
    assert json.loads(json.dumps(shown)) == shown
    shown["data"]["args"]["a"].append(2)
    assert resource.data == {"args": {"a": [1]}}
    assert set(shown) == set(Resource.__dataclass_fields__)


# ---- no writing


async def test_acquiring_is_refused_and_leaves_nothing(store: Store, directories: Directories, clock: Clock) -> None:
    await make_unwritable(databases(store)[0])
    with pytest.raises(Unavailable, match="can't be written"):
        await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"), Intent(Kind.CNI, "s", sandbox="s"))
    assert store.ledger.all() == []
    assert store.problem
    await make_writable(databases(store)[0])
    assert await _reopened(store, directories, clock) == []


@pytest.mark.parametrize("broken", [pytest.param(0, id="boot"), pytest.param(1, id="disk")])
async def test_refusal_by_one_database_takes_back_the_other(store: Store, directories: Directories, clock: Clock, broken: int) -> None:
    await make_unwritable(databases(store)[broken])
    with pytest.raises(Unavailable):
        await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"), Intent(Kind.CNI, "s", sandbox="s"))
    assert await _reopened(store, directories, clock) == []


async def test_refused_intent_can_be_repeated(store: Store) -> None:
    await make_unwritable(databases(store)[0])
    with pytest.raises(Unavailable):
        await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    await make_writable(databases(store)[0])
    await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    await store.flush()
    assert [resource.key for resource in store.ledger.all()] == ["n"]


async def test_hold_tells_that_it_could_not_write_but_remembers(store: Store) -> None:
    await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    await make_unwritable(databases(store)[0])
    with pytest.raises(Unavailable, match="netns n exists, but"):
        await store.ledger.hold(Kind.NETNS, "n", {"inode": 7})
    resource = store.ledger.get(Kind.NETNS, "n")
    assert resource is not None
    assert (resource.state, resource.data) == (State.HELD, {"inode": 7})


@pytest.mark.field_fault("25")
async def test_releasing_needs_no_writable_ledger(store: Store, directories: Directories, clock: Clock) -> None:
    ledger = store.ledger
    await ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"), Intent(Kind.UTSNS, "u", sandbox="s"))
    await make_unwritable(databases(store)[0])
    ledger.releasing(ledger.all())
    await ledger.drop(Kind.NETNS, "n")
    await ledger.failed(Kind.UTSNS, "u", "busy", next_attempt=clock.now)
    assert ledger.get(Kind.NETNS, "n") is None
    assert ledger.unwritten == 2
    assert await ledger.flush() == 2
    await make_writable(databases(store)[0])
    assert await ledger.flush() == 0
    (left,) = await _reopened(store, directories, clock)
    assert (left.id, left.state, left.error) == (ResourceId(Kind.UTSNS, "u"), State.FAILED, "busy")


async def test_pending_drop_that_is_lost_with_the_process_comes_back(store: Store, directories: Directories, clock: Clock) -> None:
    """It is released once more, which is harmless; forgetting it would not be."""
    await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    await make_unwritable(databases(store)[0])
    await store.ledger.drop(Kind.NETNS, "n")
    assert [resource.key for resource in await _reopened(store, directories, clock)] == ["n"]


async def test_key_of_a_pending_drop_can_be_used_again(store: Store, directories: Directories, clock: Clock) -> None:
    ledger = store.ledger
    await ledger.intend(Intent(Kind.TASK, "old", "s", "c1"), Intent(Kind.TASK, "other", "s", "c2"))
    await make_unwritable(databases(store)[0])
    await ledger.drop(Kind.TASK, "old")
    await make_writable(databases(store)[0])
    await ledger.intend(Intent(Kind.TASK, "old", "s", "c3"))
    await ledger.flush()
    assert [(resource.key, resource.container) for resource in await _reopened(store, directories, clock)] == [
        ("other", "c2"),
        ("old", "c3"),
    ]


# ---- cancellation, failpoints


async def test_cancelled_intend_leaves_nothing(store: Store, directories: Directories, clock: Clock) -> None:
    call = asyncio.create_task(store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"), Intent(Kind.CNI, "s", sandbox="s")))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert store.ledger.all() == []
    assert await _reopened(store, directories, clock) == []


async def test_refused_intent_that_somebody_released_meanwhile(store: Store) -> None:
    await make_unwritable(databases(store)[0])
    call = asyncio.create_task(store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"), Intent(Kind.UTSNS, "u", sandbox="s")))
    await asyncio.sleep(0)
    store.ledger.drop_nowait(Kind.NETNS, "n")
    with pytest.raises(Unavailable):
        await call
    assert store.ledger.all() == []


async def test_cancelled_hold_and_drop_are_done(store: Store, directories: Directories, clock: Clock) -> None:
    await store.ledger.intend(Intent(Kind.NETNS, "a", sandbox="s"), Intent(Kind.NETNS, "b", sandbox="s"))
    for work in (store.ledger.hold(Kind.NETNS, "a", {"inode": 1}), store.ledger.drop(Kind.NETNS, "b")):
        call = asyncio.create_task(work)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    (resource,) = await _reopened(store, directories, clock)
    assert (resource.key, resource.data) == ("a", {"inode": 1})


async def test_failpoints(ledger: Ledger) -> None:
    failpoints.configure("store.intend.commit=1*error(x)")
    with pytest.raises(Internal):
        await ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    assert ledger.all() == []
    await ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    failpoints.configure("store.hold.commit=error(x)")
    with pytest.raises(Internal):
        await ledger.hold(Kind.NETNS, "n")
    assert [resource.state for resource in ledger.all()] == [State.INTENDED]


# ---- journal, metrics


async def test_history(ledger: Ledger, clock: Clock) -> None:
    await ledger.intend(Intent(Kind.TASK, "c1", "s", "c1"), Intent(Kind.CNI, "s", "s"))
    clock.now += 1
    await ledger.hold(Kind.TASK, "c1")
    clock.now += 1
    ledger.releasing(ledger.all())
    clock.now += 1
    await ledger.failed(Kind.CNI, "s", "plugin said no", next_attempt=clock.now)
    clock.now += 1
    await ledger.drop(Kind.TASK, "c1")
    told = [(entry.kind, entry.transition, entry.detail) for entry in await ledger.history(sandbox="s")]
    assert told == [
        ("task", "intended", ""),
        ("cni", "intended", ""),
        ("task", "held", ""),
        ("task", "releasing", ""),
        ("cni", "releasing", ""),
        ("cni", "failed", "plugin said no"),
        ("task", "dropped", ""),
    ]
    assert [entry.transition for entry in await ledger.history(container="c1")] == ["intended", "held", "releasing", "dropped"]
    assert [entry.transition for entry in await ledger.history(key="s")] == ["intended", "releasing", "failed"]
    assert await ledger.history() == []


def _gauge(kind: str, state: str) -> float | None:
    return metrics.registry.get_sample_value("orlop_ledger_entries", {"kind": kind, "state": state})


def _pending(kind: str) -> tuple[float | None, float | None]:
    """How many releases of a kind, and the age of the oldest."""
    names = ("orlop_pending_releases", "orlop_oldest_pending_release_seconds")
    many, age = (metrics.registry.get_sample_value(name, {"kind": kind}) for name in names)
    return many, age


async def test_metrics(store: Store, directories: Directories, clock: Clock) -> None:
    ledger = store.ledger
    await ledger.intend(Intent(Kind.FIFO, "a", sandbox="s"), Intent(Kind.FIFO, "b", sandbox="s"))
    await ledger.hold(Kind.FIFO, "a")
    assert (_gauge("fifo", "intended"), _gauge("fifo", "held")) == (1, 1)
    assert _pending("fifo") == (0, 0)
    await ledger.failed(Kind.FIFO, "a", "x", next_attempt=0)
    clock.now += 60
    await ledger.failed(Kind.FIFO, "b", "x", next_attempt=0)
    ledger.releasing(ledger.all())
    clock.now += 5
    assert (_pending("fifo"), _pending("cni")) == ((2, 65), (0, 0))
    assert (_gauge("fifo", "intended"), _gauge("fifo", "held"), _gauge("fifo", "releasing")) == (0, 0, 2)
    await ledger.drop(Kind.FIFO, "a")
    assert _pending("fifo") == (1, 5)
    await _reopened(store, directories, clock)
    assert (_gauge("fifo", "releasing"), _gauge("fifo", "failed")) == (1, 0)
    assert _pending("fifo") == (1, 5)
