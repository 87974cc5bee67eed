"""`within`, `together`, `in_thread` and the keyed locks."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest

from agent.aio import KeyedLock, in_thread, together, within
from agent.errdefs import DeadlineExceeded


async def give(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail(text: str) -> int:
    await asyncio.sleep(0)
    raise ValueError(text)


class TestWithin:
    async def test_a_result_in_time(self) -> None:
        assert await within(5, give(7), "work") == 7

    async def test_a_wait_that_is_too_long_is_named_and_cancelled(self) -> None:
        ended = asyncio.Event()

        async def hang() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        with pytest.raises(DeadlineExceeded, match=r"^the shim took longer than 0\.01 s$"):
            await within(0.01, hang(), "the shim")
        assert ended.is_set()

    async def test_a_failure_is_passed_on(self) -> None:
        with pytest.raises(ValueError, match="boom"):
            await within(5, fail("boom"), "work")

    async def test_a_timeout_of_the_work_itself_is_not_ours(self) -> None:
        async def connect() -> None:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

        with pytest.raises(TimeoutError, match="Connection timed out"):
            await within(5, connect(), "work")

    async def test_a_cancelled_caller_is_cancelled(self) -> None:
        task = asyncio.create_task(within(5, asyncio.Event().wait(), "work"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestTogether:
    async def test_results_are_in_the_order_of_the_work(self) -> None:
        assert await together(give(1), give(2), give(3)) == [1, 2, 3]
        assert await together() == []

    async def test_a_failure_lets_the_others_end_first(self) -> None:
        ended = []

        async def slow() -> None:
            await asyncio.sleep(0.01)
            ended.append(True)

        with pytest.raises(ValueError, match="boom"):
            await together(fail("boom"), slow())
        assert ended == [True]

    async def test_further_failures_are_notes(self) -> None:
        with pytest.raises(ValueError, match="first") as failure:
            await together(fail("first"), give(1), fail("second"))
        assert failure.value.__notes__ == ["also: second"]

    async def test_work_that_was_cancelled_does_not_hide_a_failure(self) -> None:
        cancelled = asyncio.create_task(asyncio.Event().wait())
        cancelled.cancel()
        with pytest.raises(ValueError, match="boom"):
            await together(cancelled, fail("boom"))

    async def test_a_cancelled_caller_cancels_all(self) -> None:
        work = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
        caller = asyncio.create_task(together(*work))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert all(task.cancelled() for task in work)


class TestThreads:
    async def test_a_call_runs_elsewhere_and_its_result_or_failure_comes_back(self) -> None:
        assert await in_thread(threading.get_ident) != threading.get_ident()
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(int, "x")

    async def test_a_cancelled_caller_does_not_stop_the_call(self) -> None:
        begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            go_on.wait(5)
            ended.set()

        caller = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(begun.wait, 5)
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled()
        go_on.set()
        assert await asyncio.to_thread(ended.wait, 5)


class TestKeyedLock:
    async def test_one_at_a_time_per_key_in_the_order_of_coming(self) -> None:
        locks, order = KeyedLock(), []

        async def work(number: int) -> None:
            async with locks.hold("a"):
                order.append(("in", number))
                await asyncio.sleep(0)
                order.append(("out", number))

        await asyncio.gather(*(work(number) for number in range(5)))
        assert order == [(way, number) for number in range(5) for way in ("in", "out")]

    async def test_other_keys_do_not_wait(self) -> None:
        locks = KeyedLock()
        async with locks.hold("a"), asyncio.timeout(5), locks.hold("b"):
            assert locks.locked("a")
            assert locks.locked("b")

    async def test_a_key_is_forgotten_with_its_last_user(self) -> None:
        locks = KeyedLock()
        async with locks.hold("a"):
            waiting = asyncio.create_task(locks.passed("a"))
            await asyncio.sleep(0)
        assert locks.locked("a")
        await waiting
        assert not locks.locked("a")
        assert locks._locks == {}

    async def test_who_gives_up_waiting_leaves_nothing(self) -> None:
        locks = KeyedLock()
        async with locks.hold("a"):
            waiting = asyncio.create_task(locks.passed("a"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert not locks.locked("a")
        async with asyncio.timeout(5):
            await locks.passed("a")

    async def test_a_failure_inside_gives_the_lock_back(self) -> None:
        locks = KeyedLock()
        with pytest.raises(ValueError, match="boom"):
            async with locks.hold("a"):
                await fail("boom")
        assert not locks.locked("a")
