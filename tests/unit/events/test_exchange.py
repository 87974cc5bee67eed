"""Publish and subscribe inside of the process."""

from __future__ import annotations

import asyncio

from agent.events import Event, Exchange, Exit, Subscription, TaskDelete, TaskExit, TaskOOM

EVENTS: list[Event] = [TaskOOM("a"), TaskExit("a", Exit(137, 1)), TaskDelete("a"), TaskExit("b", Exit(0, 2))]


async def received(subscription: Subscription) -> list[Event]:
    async with asyncio.timeout(5):
        return [event async for event in subscription]


async def test_everybody_gets_every_event_in_order() -> None:
    exchange = Exchange()
    first, second = exchange.subscribe(), exchange.subscribe()
    for event in EVENTS:
        exchange.publish(event)
    for subscription in (first, second):
        subscription.close()
        assert await received(subscription) == EVENTS


async def test_a_subscription_begins_when_it_is_made_and_ends_when_it_is_closed() -> None:
    exchange = Exchange()
    exchange.publish(EVENTS[0])
    subscription = exchange.subscribe()
    exchange.publish(EVENTS[1])
    subscription.close()
    exchange.publish(EVENTS[2])
    assert await received(subscription) == [EVENTS[1]]


async def test_who_waits_is_woken() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    waiting = asyncio.create_task(received(subscription))
    await asyncio.sleep(0)
    exchange.publish(EVENTS[0])
    await asyncio.sleep(0)
    subscription.close()
    assert await waiting == [EVENTS[0]]


async def test_closing_twice_and_with_nobody_there_is_fine() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    subscription.close()
    subscription.close()
    exchange.publish(EVENTS[0])
    assert await received(subscription) == []
    assert exchange._subscriptions == []


async def test_a_slow_subscriber_holds_up_nobody_and_loses_nothing() -> None:
    exchange = Exchange()
    slow, fast = exchange.subscribe(), exchange.subscribe()
    events = [TaskOOM(str(number)) for number in range(10_000)]
    for event in events:
        exchange.publish(event)
    fast.close()
    assert await received(fast) == events
    slow.close()
    assert await received(slow) == events
