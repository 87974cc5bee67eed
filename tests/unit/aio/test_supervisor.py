"""Owned tasks: none is lost, none outlives its owner, none is cut in two by a caller that gave up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog

from agent.aio import Supervisor


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor("owner")
    yield supervisor
    await supervisor.stop(0)


async def fail(text: str) -> None:
    raise ValueError(text)


async def test_a_failure_that_nobody_awaits_is_logged_with_its_name(supervisor: Supervisor) -> None:
    with structlog.testing.capture_logs() as logged:
        task = supervisor.start(fail("boom"), name="work")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    (entry,) = logged
    assert (entry["log_level"], entry["task"], entry["error"]) == ("error", "owner: work", "boom")


async def test_a_failure_that_is_awaited_is_the_callers(supervisor: Supervisor) -> None:
    with structlog.testing.capture_logs() as logged:
        with pytest.raises(ValueError, match="boom"):
            await supervisor.detached(fail("boom"), name="work")
        with pytest.raises(ValueError, match="bang"):
            await supervisor.join(supervisor.start_awaited(fail("bang"), name="work"))
        await asyncio.sleep(0)
    assert logged == []


async def test_detached_work_goes_on_when_its_caller_is_cancelled(supervisor: Supervisor) -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        ended.set()

    caller = asyncio.create_task(supervisor.detached(work(), name="work"))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not ended.is_set()
    go_on.set()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_failure_after_the_caller_was_cancelled_is_logged(supervisor: Supervisor) -> None:
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise ValueError("late")

    caller = asyncio.create_task(supervisor.detached(work(), name="work"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    with structlog.testing.capture_logs() as logged:
        go_on.set()
        await supervisor.stop(5)
        await asyncio.sleep(0)
    assert [entry["error"] for entry in logged] == ["late"]


async def test_several_may_wait_for_one_task(supervisor: Supervisor) -> None:
    go_on = asyncio.Event()

    async def work() -> int:
        await go_on.wait()
        return 7

    task = supervisor.start_awaited(work(), name="work")
    first, second = (asyncio.create_task(supervisor.join(task)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    assert await second == 7


async def test_stop_lets_work_end_within_its_budget(supervisor: Supervisor) -> None:
    ended: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        ended.append("work")

    supervisor.start(work(), name="work")
    await supervisor.stop(5)
    assert ended == ["work"]
    assert "0 tasks" in repr(supervisor)


async def test_stop_cancels_what_is_left_the_newest_first(supervisor: Supervisor) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            order.append(number)

    for number in range(20):
        supervisor.start(work(number), name=str(number))
    await asyncio.sleep(0)
    await supervisor.stop(0)
    assert order == list(reversed(range(20)))


async def test_stop_waits_for_the_cleanup_of_what_it_cancelled(supervisor: Supervisor) -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    supervisor.start(work(), name="work")
    await asyncio.sleep(0)
    await supervisor.stop(0)
    assert cleaned == [True]


async def test_what_a_cancelled_task_starts_does_not_hold_up_the_stop(supervisor: Supervisor) -> None:
    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            supervisor.start(asyncio.Event().wait(), name="cleanup")

    supervisor.start(work(), name="work")
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await supervisor.stop(0)


async def test_a_cancelled_task_is_no_failure(supervisor: Supervisor) -> None:
    with structlog.testing.capture_logs() as logged:
        supervisor.start(asyncio.Event().wait(), name="work")
        await asyncio.sleep(0)
        await supervisor.stop(0)
        await asyncio.sleep(0)
    assert logged == []
