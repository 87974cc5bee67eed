"""What the daemon says of those that work for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent import metrics
from agent.daemon import health
from agent.pods.context import Pods
from agent.store.kinds import Kind


def memory(of: str) -> float:
    return metrics.registry.get_sample_value("orlop_shim_resident_bytes", {"of": of}) or 0.0


@pytest.mark.field_fault("11")
async def test_the_memory_of_shims(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no shim, has no process yet or has ended doesn't count."""
    looked = asyncio.Event()

    async def sleep(_: float) -> None:
        looked.set()
        await asyncio.Future()

    monkeypatch.setattr("agent.daemon.health.asyncio.sleep", sleep)
    data = [(Kind.SHIM, {"pid": os.getpid()}), (Kind.SHIM, {}), (Kind.TASK, {"pid": os.getpid()})]
    resources = [SimpleNamespace(kind=kind, data=each) for kind, each in data]
    pods = cast(Pods, SimpleNamespace(ledger=SimpleNamespace(all=lambda: resources)))
    watching = asyncio.ensure_future(health.watch_shims(pods))
    await looked.wait()
    watching.cancel()
    assert memory("all") == memory("largest") > 1 << 20


def test_what_is_resident(tmp_path: Path) -> None:
    for pid, pages in ((1, 3), (2, 5)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(f"100 {pages} 2 1 0 50 0\n")
    page = os.sysconf("SC_PAGE_SIZE")
    assert health.resident_bytes([1, 2, 3, 0], tmp_path) == [3 * page, 5 * page]
