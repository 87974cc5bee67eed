"""The daemon looking at itself and at what works for it: event-loop lag, pins that went missing behind its back, what shims take."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent import metrics
from agent.aio import in_thread
from agent.pods import recovery
from agent.pods.context import Pods
from agent.store.kinds import Kind

_LAG_INTERVAL = 0.5
_PIN_INTERVAL = 60.0
_MEMORY_INTERVAL = 60.0


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


async def watch_shims(pods: Pods) -> None:
    """Measure the memory of shims: some leak a little with each exec (field fault 11), and probes are execs."""
    while True:
        shims = [int(resource.data.get("pid") or 0) for resource in pods.ledger.all() if resource.kind is Kind.SHIM]
        sizes = await in_thread(resident_bytes, shims)
        metrics.shim_memory.labels("all").set(sum(sizes))
        metrics.shim_memory.labels("largest").set(max(sizes, default=0))
        await asyncio.sleep(_MEMORY_INTERVAL)


def resident_bytes(pids: Iterable[int], proc: Path = Path("/proc")) -> list[int]:
    """What these processes have in memory (proc(5), statm); those that have ended are left out."""
    page, sizes = os.sysconf("SC_PAGE_SIZE"), []
    for pid in filter(None, pids):
        with suppress(OSError):
            sizes.append(int((proc / str(pid) / "statm").read_text().split()[1]) * page)
    return sizes
