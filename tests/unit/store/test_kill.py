"""`kill -9` at any moment: what was confirmed is there, what was not confirmed is whole or absent, and the store opens."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from agent.aio import in_thread
from agent.store.kinds import Kind
from agent.store.ledger import State
from agent.store.store import Store
from tests.unit.store.conftest import Clock, Directories

REPOSITORY = Path(__file__).parents[3]


def _child(directories: Directories, moment: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.unit.store.killed_child", str(directories.state), str(directories.root), moment, *arguments]


def _run(directories: Directories, moment: str, *arguments: str) -> None:
    child = subprocess.run(_child(directories, moment, *arguments), cwd=REPOSITORY, check=False, timeout=30)
    assert child.returncode == -signal.SIGKILL


async def _open(directories: Directories, clock: Clock) -> Store:
    return await directories.open(clock, boot_id="b")


@pytest.mark.parametrize(
    ("moment", "states"),
    [
        ("after_intend", [State.INTENDED, State.INTENDED]),
        ("after_hold", [State.HELD, State.HELD]),
        ("after_failed", [State.FAILED, State.FAILED]),
        ("after_drop", []),
    ],
)
async def test_confirmed_step(directories: Directories, clock: Clock, moment: str, states: list[State]) -> None:
    _run(directories, moment)
    store = await _open(directories, clock)
    assert [resource.state for resource in store.ledger.all()] == states
    if moment == "after_hold":
        assert [resource.data for resource in store.ledger.all()] == [{"inode": 7}, {"conf": "x"}]
    await store.close()


async def test_confirmed_records(directories: Directories, clock: Clock) -> None:
    _run(directories, "after_records")
    store = await _open(directories, clock)
    for records in (store.boot_records("b"), store.disk_records("b")):
        assert await records.load() == {"kept": b"1"}
    await store.close()


@pytest.mark.parametrize("database", [pytest.param("0", id="boot"), pytest.param("1", id="disk")])
async def test_transaction_is_undone(directories: Directories, clock: Clock, database: str) -> None:
    _run(directories, "inside_a_transaction", database)
    store = await _open(directories, clock)
    assert len(store.ledger.all()) == 2
    await store.close()


async def test_half_an_intend_can_be_released(directories: Directories, clock: Clock) -> None:
    """Each database has its own commit. As nothing is acquired before both, what is left is only released for nothing."""
    _run(directories, "between_the_two_commits_of_an_intend")
    store = await _open(directories, clock)
    assert [(resource.kind, resource.state) for resource in store.ledger.all()] == [(Kind.NETNS, State.INTENDED)]
    await store.close()


@pytest.mark.parametrize("moment", ["inside_a_migration", "before_the_boot_id_is_written"])
async def test_first_start(directories: Directories, clock: Clock, moment: str) -> None:
    _run(directories, moment)
    store = await _open(directories, clock)
    assert store.ledger.all() == []
    assert store.problem == ""
    await store.close()
    assert list(directories.state.glob("*corrupt*")) == []


@pytest.mark.parametrize(
    "moment", ["while_a_corrupt_file_is_copied", "before_a_corrupt_file_is_set_aside", "before_a_repaired_file_takes_its_place"]
)
async def test_repair_is_repeated(directories: Directories, clock: Clock, moment: str) -> None:
    _run(directories, moment)
    store = await _open(directories, clock)
    assert 80 < len(store.ledger.all()) < 100
    await store.close()


@pytest.mark.field_fault("24")
@pytest.mark.parametrize("lines", [1, 2, 9, 60, 333])
async def test_at_some_moment(directories: Directories, clock: Clock, lines: int) -> None:
    said = await in_thread(_kill_after, _child(directories, "whenever_the_parent_likes"), lines)
    steps: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in said:
        word, verb, kind, key = line.split()
        steps[kind, key].append(f"{word} {verb}")
    store = await _open(directories, clock)
    there = {(str(resource.kind), resource.key) for resource in store.ledger.all()}
    for name, done in steps.items():
        if done[-1] == "done intend":
            assert name in there
        if done[-1] == "done drop":
            assert name not in there
    assert there <= set(steps)
    await store.close()


def _kill_after(command: list[str], lines: int) -> list[str]:
    """Kill the child when it has said so many lines; all that it has said till then."""
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        return said + child.stdout.readlines()
