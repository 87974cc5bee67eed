"""Random pods, random failures: what must hold of every walk, and that all of it ends once the failures do."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errdefs import Busy
from agent.store.kinds import KINDS, Kind
from agent.store.ledger import Intent, Ledger, Resource, ResourceId
from agent.store.release import Blocked, Releases
from agent.store.store import Store
from tests.unit.store.conftest import Clock
from tests.unit.store.inline_writer import InlineWriter

CONTAINER_KINDS = [Kind.TASK, Kind.LOG, Kind.FIFO, Kind.SNAPSHOT]
POD_KINDS = [kind for kind in Kind if kind not in (Kind.LOG, Kind.INGEST, Kind.LAYER_UNPACK)]


@dataclass(frozen=True)
class Plan:
    """The resources in the order of their making, how often each one's release fails, and how many turns of the loop it takes."""

    intents: list[Intent]
    failures: dict[ResourceId, int]
    turns: dict[ResourceId, int]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    intents = []
    for sandbox in ("s1", "s2")[: draw(st.integers(1, 2))]:
        intents += [Intent(kind, f"{sandbox}/{kind}", sandbox) for kind in draw(st.sets(st.sampled_from(POD_KINDS)))]
        for container in ("c1", "c2", "c3")[: draw(st.integers(0, 3))]:
            kinds = draw(st.sets(st.sampled_from(CONTAINER_KINDS)))
            intents += [Intent(kind, f"{sandbox}/{container}/{kind}", sandbox, f"{sandbox}/{container}") for kind in kinds]
    intents = draw(st.permutations(intents))
    failures = {intent.id: draw(st.sampled_from([0, 0, 0, 1, 2])) for intent in intents}
    turns = {intent.id: draw(st.integers(0, 3)) for intent in intents}
    return Plan(intents, failures, turns)


def _must_outlive(user: Resource, used: Resource) -> bool:
    """The rule, written down once more from the plan's words and not from the code's."""
    if user.sandbox != used.sandbox or used.container not in ("", user.container):
        return False
    between_tasks = user.kind is used.kind is Kind.TASK and bool(user.container) and not used.container
    return used.kind in KINDS[user.kind].uses or between_tasks


def _kept(resources: list[Resource], failing: set[ResourceId]) -> set[ResourceId]:
    """The failing ones, and what something that is kept uses."""
    kept = {resource.id for resource in resources if resource.id in failing}
    while True:
        more = {used.id for used in resources if any(user.id in kept and _must_outlive(user, used) for user in resources)} - kept
        if not more:
            return kept
        kept |= more


class Node:
    """Release functions that check, at the moment they are called, that no user is left."""

    def __init__(self, plan: Plan, ledger: Ledger, releases: Releases) -> None:
        self._failures = dict(plan.failures)
        self._turns = plan.turns
        self._ledger = ledger
        self.attempts: Counter[ResourceId] = Counter()
        self.running: set[ResourceId] = set()
        self.gone: list[Resource] = []
        for kind in Kind:
            releases.register(kind, self.release)

    async def release(self, resource: Resource) -> None:
        assert [user.id for user in self._ledger.all() if _must_outlive(user, resource)] == []
        assert resource.id not in self.running, "two attempts at once"
        self.running.add(resource.id)
        self.attempts[resource.id] += 1
        for _ in range(self._turns[resource.id]):
            await asyncio.sleep(0)
        self.running.remove(resource.id)
        if self._failures[resource.id]:
            self._failures[resource.id] -= 1
            raise Busy("not yet")
        self.gone.append(resource)


async def _walks(plan: Plan, callers: int) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        state, root = Path(directory, "run"), Path(directory, "lib")
        store = await Store.open(state, root, clock=clock, boot_id="b", writer=InlineWriter)
        releases = Releases(store.ledger, clock, wait=tenacity.wait_fixed(1))
        node = Node(plan, store.ledger, releases)
        if plan.intents:
            await store.ledger.intend(*plan.intents)
        before = store.ledger.all()
        failing = {name for name, count in plan.failures.items() if count}

        sandboxes = sorted({intent.sandbox for intent in plan.intents})
        answers = await asyncio.gather(*(releases.release_owned(sandbox=sandbox) for sandbox in sandboxes for _ in range(callers)))
        left = {resource.id: error for answer in answers for resource, error in answer}
        kept = {resource.id for resource in store.ledger.all()}
        if callers == 1:
            assert kept == _kept(before, failing), "the failed and what they stand on stay, all else is gone"
            assert set(left) == kept
            for name, error in left.items():
                assert isinstance(error, Blocked) == (name not in node.attempts)
        for resource in store.ledger.all():
            assert resource.attempts == node.attempts[resource.id]

        await store.close()  # a restart in between: nothing is forgotten
        store = await Store.open(state, root, clock=clock, boot_id="b", writer=InlineWriter)
        assert {resource.id for resource in store.ledger.all()} == kept
        await releases.stop(0)
        again = Releases(store.ledger, clock, wait=tenacity.wait_fixed(1))
        for kind in Kind:
            again.register(kind, node.release)
        node._ledger = store.ledger
        for _ in range(60):
            if not store.ledger.all():
                break
            again.start_due()
            for _ in range(60):
                await asyncio.sleep(0)
            clock.now += 1
        assert store.ledger.all() == []
        assert sorted(resource.id for resource in node.gone) == sorted(resource.id for resource in before), "each is gone once"
        for later, resource in enumerate(node.gone):
            assert not any(_must_outlive(user, resource) for user in node.gone[later + 1 :])
        await again.stop(0)
        await store.close()


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_one_caller(plan: Plan) -> None:
    asyncio.run(_walks(plan, callers=1))


@settings(max_examples=30, deadline=None)
@given(plan=plans())
def test_two_callers_at_once(plan: Plan) -> None:
    asyncio.run(_walks(plan, callers=2))
