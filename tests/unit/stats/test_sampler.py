"""Many cgroups at once, each read by one thread at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import timeouts
from agent.stats import Cgroup, Readout, Sample, Sampler, Value
from tests.unit.stats import trees


class Slow(Cgroup):
    """A cgroup whose files take as long as the test wants."""

    def __init__(self) -> None:
        super().__init__({})
        self.go = threading.Event()
        self.begun = asyncio.Event()
        self.reads = 0
        self._loop = asyncio.get_running_loop()

    def read(self) -> Sample | None:
        self.reads += 1
        self._loop.call_soon_threadsafe(self.begun.set)
        self.go.wait(30)
        return Sample(self.reads, self.reads)


class Broken(Cgroup):
    def read(self) -> Sample | None:
        raise OSError(5, "I/O error", "memory.stat")


@pytest.fixture
async def sampler() -> AsyncIterator[Sampler]:
    sampler = Sampler({})
    yield sampler
    await sampler.stop(5)


async def test_samples_come_in_the_order_asked_for(sampler: Sampler, tmp_path: Path) -> None:
    trees.v2(tmp_path)
    cgroups = []
    for number in range(120):
        trees.v2(tmp_path, f"/c{number}", {"pids.current": str(number)})
        cgroups.append(Cgroup.at(f"/c{number}", trees.controllers(tmp_path)))
    samples = await sampler.read(cgroups)
    assert [sample.tasks if sample else None for sample in samples] == list(range(120))
    assert await sampler.read([]) == []


async def test_who_asks_during_a_reading_gets_that_one_and_later_a_new_one(sampler: Sampler) -> None:
    cgroup = Slow()
    first = asyncio.ensure_future(sampler.read([cgroup]))
    await cgroup.begun.wait()
    second = asyncio.ensure_future(sampler.read([cgroup, cgroup]))
    await asyncio.sleep(0)
    cgroup.go.set()
    assert await first == [Sample(1, 1)]
    assert await second == [Sample(1, 1)] * 2
    assert await sampler.read([cgroup]) == [Sample(2, 2)]


async def test_who_gives_up_doesnt_end_the_reading_for_others(sampler: Sampler) -> None:
    cgroup = Slow()
    first, second = (asyncio.ensure_future(sampler.read([cgroup])) for _ in range(2))
    await cgroup.begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    cgroup.go.set()
    assert await second == [Sample(1, 1)]
    assert cgroup.reads == 1


async def test_a_cgroup_that_doesnt_answer_costs_one_thread_and_no_other_its_numbers(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.v2(tmp_path, "/c")
    well, stuck = Cgroup.at("/c", trees.controllers(tmp_path)), Slow()
    monkeypatch.setattr(timeouts, "STATS", 0.01)
    assert await sampler.read([stuck]) == [None]
    monkeypatch.setattr(timeouts, "STATS", 5.0)
    again = asyncio.ensure_future(sampler.read([well, stuck]))
    [sample] = await sampler.read([well])
    assert sample is not None
    stuck.go.set()
    assert [bool(found) for found in await again] == [True, True]
    assert stuck.reads == 1


async def test_a_cgroup_that_cant_be_read_has_no_numbers(sampler: Sampler, tmp_path: Path) -> None:
    trees.v2(tmp_path, "/c")
    broken, well = await sampler.read([Broken({}), Cgroup.at("/c", trees.controllers(tmp_path))])
    assert broken is None
    assert well is not None


async def test_oom_kills_that_cant_be_asked_for_are_none(sampler: Sampler, tmp_path: Path) -> None:
    directory = trees.v2(tmp_path, "/c", {"memory.events": "oom_kill 1\n"})
    cgroup = Cgroup.at("/c", trees.controllers(tmp_path))
    assert await sampler.oom_kills(cgroup) == 1
    (directory / "memory.events").unlink()
    (directory / "memory.events").mkdir()  # EISDIR: no kernel's answer
    assert await sampler.oom_kills(cgroup) == 0


async def test_a_disk_that_doesnt_answer_costs_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    go, asked = threading.Event(), 0

    def hang(self: Readout, directory: str) -> list[Value]:
        nonlocal asked
        asked += 1
        go.wait(30)
        return []

    monkeypatch.setattr(Readout, "filesystem", hang)
    monkeypatch.setattr(timeouts, "STATS", 0.01)
    sampler = Sampler({})
    for _ in range(3):
        assert await sampler.filesystem("/var/lib/orlop") == []
    assert asked == 1
    go.set()
    await sampler.stop(5)


async def test_a_disk_that_is_not_there_has_no_size(sampler: Sampler, tmp_path: Path) -> None:
    assert await sampler.filesystem(str(tmp_path / "nowhere")) == []
    assert await sampler.filesystem(str(tmp_path))
