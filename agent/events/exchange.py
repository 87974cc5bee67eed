"""In-process publish and subscribe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agent.events.types import Event


class Subscription:
    """The events since `subscribe()`, in order: `async for event in subscription`. Ends with `close()`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event | None) -> None:
        self._queue.put_nowait(event)

    def close(self) -> None:
        """No further events; those already queued are still delivered."""
        self._exchange.unsubscribe(self)
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            yield event


class Exchange:
    """Delivers each event to every subscription, in the order of publishing.

    Queues are unbounded: a container raises a handful of events in its life, and none of them may be lost.
    """

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []

    def subscribe(self) -> Subscription:
        subscription = Subscription(self)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.put(event)
