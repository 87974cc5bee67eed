"""Container events, as wire bytes, to everybody who listens.

Unlike `agent.events`, whose subscribers are ours, these are clients that may not read: each has a bounded queue, and what is
too much for it is lost, the oldest first. An event carries the pod's whole state, so that a later one makes up for it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from agent import metrics

QUEUE = 1000
"""Events of one subscriber; a few KiB each."""


class Subscription:
    """The events since `EventFeed.subscribe()`, in order. Ends when the feed is closed; `aclose()` it in any case."""

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed
        self._events: deque[bytes] = deque()
        self._woken = asyncio.Event()
        self._ended = False

    def put(self, event: bytes) -> None:
        if len(self._events) == QUEUE:
            self._events.popleft()
            metrics.container_events_dropped.inc()
        self._events.append(event)
        self._woken.set()

    def end(self) -> None:
        """No further events; those already queued are still delivered."""
        self._ended = True
        self._woken.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._events.popleft()

    async def aclose(self) -> None:
        self._feed.unsubscribe(self)
        self.end()


class EventFeed:
    """Delivers each event to all subscriptions. Publishing never waits."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._closed = False

    @property
    def listened_to(self) -> bool:
        """Whether an event is worth making."""
        return bool(self._subscriptions)

    def subscribe(self) -> Subscription:
        subscription = Subscription(self)
        if self._closed:
            subscription.end()
        else:
            self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def publish(self, event: bytes) -> None:
        for subscription in self._subscriptions:
            subscription.put(event)

    def close(self) -> None:
        """End all subscriptions, and those to come: the agent stops, and their calls must not wait for it."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()
