"""The daemon looking at itself: event-loop lag, and pins that went missing behind its back."""

from __future__ import annotations

import asyncio

from agent import metrics
from agent.pods import recovery
from agent.pods.context import Pods

_LAG_INTERVAL = 0.5
_PIN_INTERVAL = 60.0


async def watch_lag() -> None:
    """Measure how late the loop runs a timer; what blocks the loop shows here."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_INTERVAL
        await asyncio.sleep(_LAG_INTERVAL)
        metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))


async def watch_pins(pods: Pods) -> None:
    """Node scripts unmount names in /run/netns now and then: such a sandbox is not ready any more (decisions.md 8)."""
    while True:
        await asyncio.sleep(_PIN_INTERVAL)
        for sandbox in pods.registry.sandboxes:
            await recovery.apart(f"the pins of sandbox {sandbox.record.id}", recovery.check_pins(pods, sandbox))
