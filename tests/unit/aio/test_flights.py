"""Work that is shared: who gets what, and when it ends."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio import Flights, Supervisor
from agent.errdefs import NotFound, Unavailable


class Work:
    """Runs until it is let go; counts its beginnings and ends."""

    def __init__(self) -> None:
        self.begun = 0
        self.cleaned = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        finally:
            await asyncio.sleep(0)  # cleaning up takes a while
            self.cleaned += 1
        return number


@pytest.fixture
def flights() -> Flights:
    return Flights(Supervisor("test"))


@pytest.fixture
def work() -> Work:
    return Work()


async def started(flights: Flights, work: Work, count: int, key: str = "k") -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(flights.join(key, work, name="the work")) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def cancelled(task: asyncio.Task[int]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_all_get_the_same(flights: Flights, work: Work) -> None:
    tasks = await started(flights, work, 3)
    other = await started(flights, work, 1, "other")
    work.go.set()
    assert await asyncio.gather(*tasks, *other) == [1, 1, 1, 2]
    assert await flights.join("k", work, name="again") == 3


async def test_all_get_the_same_error(flights: Flights) -> None:
    async def fail() -> None:
        raise NotFound("it is not there")

    outcomes = await asyncio.gather(*(flights.join("k", fail, name="x") for _ in range(2)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["it is not there"] * 2


async def test_it_goes_on_while_somebody_waits(flights: Flights, work: Work) -> None:
    first, second, third = await started(flights, work, 3)
    await cancelled(first)
    await cancelled(third)
    assert work.cleaned == 0
    work.go.set()
    assert await second == 1


async def test_the_last_one_ends_it_and_waits_for_its_end(flights: Flights, work: Work) -> None:
    first, second = await started(flights, work, 2)
    await cancelled(first)
    await cancelled(second)
    assert work.cleaned == 1


async def test_who_comes_while_it_ends_starts_anew(flights: Flights, work: Work) -> None:
    (first,) = await started(flights, work, 1)
    first.cancel()
    await asyncio.sleep(0)
    (second,) = await started(flights, work, 1)
    work.go.set()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_stop(flights: Flights, work: Work) -> None:
    tasks = await started(flights, work, 2)
    await flights.stop()
    assert work.cleaned == 1
    for task in tasks:
        with pytest.raises(Unavailable, match="the work is given up: the agent stops"):
            await task
    with pytest.raises(Unavailable, match="more is not begun: the agent stops"):
        await flights.join("k", work, name="more")
    await flights.stop()
