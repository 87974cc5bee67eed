"""Whose turn it is, and what becomes of a socket that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bench.measurements import Measurement
from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.session import Session
from agent.bench.target import Target
from agent.errdefs import DeadlineExceeded, OrlopError, Unavailable, Unimplemented
from tests.unit.bench.fakes import FakeRuntime, makers


@pytest.fixture
def session(tmp_path: Path) -> Session:
    runtimes = [FakeRuntime(name) for name in "abc"]
    make = makers(tmp_path, *runtimes)
    plan = Plan(image="busybox", log_root=tmp_path / "logs")
    targets = [make(runtime.socket, plan) for runtime in runtimes]
    for target, name in zip(targets, "abc", strict=True):
        target.name = name
    results = Results([Measurement("x", "family", "X"), Measurement("y", "other", "Y")], "abc")
    for target in targets:
        target.results = results
    return Session(plan, targets, results)


async def test_everyone_is_first_in_turn(session: Session) -> None:
    turns = []

    async def turn(target: Target) -> None:
        turns.append(target.name)

    assert await session.rounds("family", 4, turn) == list(session.targets)
    assert "".join(turns) == "abcbcacababc"


async def test_a_turn_that_fails_is_told_and_the_next_one_is_a_new_try(session: Session) -> None:
    turns = []

    async def turn(target: Target) -> None:
        turns.append(target.name)
        if target.name == "b" and turns.count("b") == 2:
            raise Unavailable("nobody serves b")
        target.add("x", 1.0)

    assert await session.rounds("family", 3, turn) == list(session.targets)
    assert [len(session.results.of("x", name).values) for name in "abc"] == [3, 2, 3]
    assert [session.results.of("x", name).reason for name in "abc"] == ["", "nobody serves b", ""]
    assert session.results.of("y", "b").reason == ""  # another family


@pytest.mark.parametrize(
    ("failure", "tries", "reason"),
    [(Unavailable("gone"), 3, "3 turns failed, the first: gone"), (Unimplemented("no"), 1, "no"), (DeadlineExceeded("slow"), 1, "slow")],
)
async def test_one_that_goes_on_failing_has_no_further_turns(session: Session, failure: OrlopError, tries: int, reason: str) -> None:
    turns = []

    async def turn(target: Target) -> None:
        turns.append(target.name)
        if target.name == "b":
            raise failure

    left = await session.rounds("family", 5, turn)
    assert [target.name for target in left] == ["a", "c"]
    assert [turns.count(name) for name in "abc"] == [5, tries, 5]
    assert session.results.of("x", "b").reason == reason


async def test_what_a_failed_turn_left_is_removed_before_the_next(session: Session) -> None:
    target = session.targets[0]
    runtime = target.client
    assert isinstance(runtime, FakeRuntime)
    seen = []

    async def turn(target: Target) -> None:
        seen.append(len(runtime.pods))
        await target.start()
        raise Unavailable("broken")

    await session.rounds("family", 2, turn, [target], tidy=True)
    assert seen == [0, 0]
    assert runtime.pods == {}
    runtime.failures["ListPodSandbox"] = Unavailable("even that")
    assert await session.rounds("family", 2, turn, [target], tidy=True) == []
    assert seen == [0, 0, 0]


async def test_rounds_of_some(session: Session) -> None:
    turns = []

    async def turn(target: Target) -> None:
        turns.append(target.name)

    await session.rounds("family", 2, turn, session.targets[1:])
    assert turns == ["b", "c", "c", "b"]
    assert await session.rounds("family", 2, turn, []) == []


async def test_a_sample_that_cannot_be_had_is_no_failure(session: Session) -> None:
    async def nothing() -> float:
        raise Unavailable("not here")

    async def something() -> float:
        return 2.0

    await session.take(session.targets[0], "x", nothing)
    await session.take(session.targets[1], "x", something)
    assert session.results.of("x", "a").reason == "not here"
    assert session.results.of("x", "b").values == [2.0]
