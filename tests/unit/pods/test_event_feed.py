"""The feed of container events: order, the bound of each queue, the end."""

from __future__ import annotations

import asyncio

import pytest

from agent import metrics
from agent.pods import event_feed
from agent.pods.event_feed import EventFeed


def dropped() -> float:
    return metrics.registry.get_sample_value("orlop_container_events_dropped_total") or 0


async def test_each_subscriber_gets_all_events_since_it_subscribed() -> None:
    feed = EventFeed()
    assert not feed.listened_to
    first = feed.subscribe()
    feed.publish(b"1")
    second = feed.subscribe()
    feed.publish(b"2")
    feed.close()
    assert [event async for event in first] == [b"1", b"2"]
    assert [event async for event in second] == [b"2"]


async def test_a_subscriber_waits_for_the_next_event() -> None:
    feed = EventFeed()
    subscription = feed.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.publish(b"1")
    assert await waiting == b"1"


async def test_who_doesnt_read_loses_the_oldest_and_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "QUEUE", 3)
    feed, before = EventFeed(), dropped()
    slow, quick = feed.subscribe(), feed.subscribe()
    read = []
    for number in range(5):
        feed.publish(b"%d" % number)
        read.append(await anext(quick))
    feed.close()
    assert read == [b"0", b"1", b"2", b"3", b"4"]
    assert [event async for event in slow] == [b"2", b"3", b"4"]
    assert dropped() == before + 2


async def test_a_closed_subscription_is_forgotten() -> None:
    feed = EventFeed()
    subscription = feed.subscribe()
    await subscription.aclose()
    await subscription.aclose()
    assert not feed.listened_to
    feed.publish(b"1")
    assert [event async for event in subscription] == []


async def test_who_comes_when_the_feed_is_closed_is_told_so_at_once() -> None:
    feed = EventFeed()
    feed.close()
    assert [event async for event in feed.subscribe()] == []
    assert not feed.listened_to
