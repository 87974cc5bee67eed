"""The watch that repeats audits: what it says, what it counts, and what it doesn't take for clean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import repeat

import pytest
from structlog.testing import capture_logs

from agent import metrics
from agent.errdefs import Unavailable
from agent.leaks import LedgerRead, watch
from agent.store.kinds import Kind
from tests.unit.leaks.fakes import NOW, SANDBOX, STRANGER, FakeNode


class Turns:
    """A sleep that plays one step of a test each time it is called for a whole interval, and then ends the watch."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)

    async def __call__(self, seconds: float) -> None:
        if seconds != 60:
            return
        if not self._steps:
            raise asyncio.CancelledError
        self._steps.pop(0)()


async def watched(node: FakeNode, *steps: Callable[[], object]) -> list[str]:
    """What the watch logs, with each step played before one audit."""
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await watch(node.read, node.places, node.network, pauses=repeat(60), ask=node.ask, clock=lambda: node.now, sleep=Turns(*steps))
    return [f"{entry['event']} {entry.get('kind', entry.get('error'))}" for entry in logs]


def nothing() -> None: ...


async def test_the_watch_tells_each_finding_once(node: FakeNode) -> None:
    steps = [lambda: node.shim(7, STRANGER), nothing, lambda: (node.places.proc / "7").rename(node.top / "old"), nothing]
    assert await watched(node, *steps) == ["audit: leaked shim", "found no more shim"]


async def test_the_watch_counts_what_is_new(node: FakeNode) -> None:
    labels = {"kind": "shim", "owner": "orlop"}
    before = metrics.registry.get_sample_value("orlop_leaks_found_total", labels) or 0
    await watched(node, lambda: node.shim(7, STRANGER), nothing, lambda: node.shim(8, SANDBOX))
    assert metrics.registry.get_sample_value("orlop_leaks_found_total", labels) == before + 2


async def test_the_watch_counts_each_runc_init_once(node: FakeNode) -> None:
    before = sample("orlop_runc_init_found_total", stage="init")
    fifo = node.places.engine_state / STRANGER / "exec.fifo"
    logs = await watched(node, lambda: node.process(9, "runc", "init", comm="runc:[2:INIT]", links=[fifo]), nothing)
    assert logs == ["audit: leaked runc_init"]
    assert sample("orlop_runc_init_found_total", stage="init") == (before or 0) + 1


async def test_the_watch_leaves_failed_releases_to_those_who_release(node: FakeNode) -> None:
    entry = node.owns(Kind.CNI, SANDBOX)
    node.ledger[:] = [entry.failed("no such plugin", 1, 2)]
    assert await watched(node, nothing) == []


async def test_the_watch_goes_on_when_it_can_not_look(node: FakeNode) -> None:
    stat = node.places.proc / "stat"

    def back() -> None:
        (node.top / "stat").rename(stat)
        node.shim(7, STRANGER)

    logs = await watched(node, lambda: stat.rename(node.top / "stat"), nothing, back)
    assert logs[0].startswith("the audit can't look at the node [Errno 2]")
    assert logs[1:] == ["audit: leaked shim"]


async def test_the_watch_goes_on_when_the_ledger_can_not_be_read(node: FakeNode) -> None:
    async def unreadable() -> LedgerRead:
        raise Unavailable("no ledger")

    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await watch(unreadable, node.places, node.network, pauses=repeat(60), sleep=Turns(nothing, nothing))
    assert [entry["error"] for entry in logs] == ["no ledger"]


def sample(name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def results() -> dict[str, float]:
    """Audits so far, by what they could look at."""
    return {result: sample("orlop_audits_total", result=result) or 0 for result in ("complete", "partial", "failed")}


def leak_of_containerd(node: FakeNode, pid: int = 7) -> None:
    node.containerd()
    node.shim(pid, STRANGER, address=str(node.places.other_runtimes[0].socket))


async def test_pauses_are_made_as_they_are_given_and_end_the_watch(node: FakeNode) -> None:
    before = results()
    await watch(node.read, node.places, node.network, pauses=[0, 7], ask=node.ask, sleep=node.sleep)
    assert node.slept == [0, 7]
    assert results() == before | {"complete": before["complete"] + 2}


async def test_an_audit_that_fails_is_counted_and_changes_no_other_number(node: FakeNode) -> None:
    stat = node.places.proc / "stat"
    before = results()

    def fails() -> None:
        stat.rename(node.top / "stat")
        node.now += 60

    logs = await watched(node, lambda: node.shim(7, STRANGER), fails)
    assert len(logs) == 2
    assert results() == {"complete": before["complete"] + 1, "partial": before["partial"], "failed": before["failed"] + 1}
    assert sample("orlop_leaks", kind="shim", owner="orlop") == 1
    assert sample("orlop_last_audit_timestamp_seconds") == NOW


async def test_a_runtime_that_does_not_answer_is_neither_clean_nor_has_it_given_back_what_it_leaked(node: FakeNode) -> None:
    before, found = results(), sample("orlop_leaks_found_total", kind="shim", owner="containerd") or 0
    seen: list[tuple[float | None, float | None]] = []

    def silent() -> None:
        node.containerd(problem="it hangs")

    def answers() -> None:
        seen.append((sample("orlop_leaks", kind="shim", owner="containerd"), sample("orlop_unknown", kind="shim", owner="containerd")))
        node.containerd()

    def released() -> None:
        (node.places.proc / "7").rename(node.top / "old")

    logs = await watched(node, lambda: leak_of_containerd(node), silent, answers, released)
    assert logs == ["audit: leaked shim", "audit: unknown shim", "found no more shim", "found no more shim"]
    assert seen == [(0, 1)]
    assert sample("orlop_unknown", kind="shim", owner="containerd") == 0
    assert sample("orlop_leaks_found_total", kind="shim", owner="containerd") == found + 1
    after = results()
    assert (after["partial"] - before["partial"], after["complete"] - before["complete"]) == (1, 3)


async def test_what_can_not_be_looked_at_is_told_once_though_it_is_another_process_each_time(node: FakeNode) -> None:
    def unreadable(pid: int) -> None:
        (node.places.proc / f"{pid}/stat").mkdir(parents=True)
        (node.places.proc / f"{pid - 1}").rename(node.top / f"{pid - 1}")

    logs = await watched(node, lambda: (node.places.proc / "7/stat").mkdir(parents=True), lambda: unreadable(8), lambda: unreadable(9))
    assert logs
    assert len(set(logs)) == len(logs)
    assert all(line.startswith("audit: unknown ") for line in logs)


async def test_what_is_found_and_what_is_gone_is_told_with_all_that_is_known(node: FakeNode) -> None:
    steps = [lambda: leak_of_containerd(node), lambda: (node.places.proc / "7").rename(node.top / "old")]
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await watch(node.read, node.places, node.network, pauses=repeat(60), ask=node.ask, clock=lambda: node.now, sleep=Turns(*steps))
    found, gone = logs
    same = {"kind": "shim", "owner": "containerd", "state": "leaked", "component": "leaks", "what": found["what"]}
    assert found.items() >= (same | {"log_level": "warning", "since": NOW - 1000, "sure": "certain"}).items()
    assert gone.items() >= (same | {"log_level": "info", "event": "found no more"}).items()


async def test_labels_are_bounded_whatever_is_found(node: FakeNode) -> None:
    await watched(node, nothing)
    series = [len(family.samples) for family in metrics.of_audits.collect()]
    await watched(node, *[lambda pid=pid: node.shim(pid, f"{pid:064x}") for pid in range(100, 110)])
    after = [len(family.samples) for family in metrics.of_audits.collect()]
    assert sum(after) - sum(series) <= 1  # orlop_leaks_found for shims of ours
