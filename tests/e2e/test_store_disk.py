"""The store on a disk that is full, or read-only: a small tmpfs of the test's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.aio import in_thread
from agent.errdefs import Unavailable
from agent.store.kinds import Kind
from agent.store.ledger import Intent, Ledger
from agent.store.store import Store

pytestmark = pytest.mark.e2e

NETNS, CNI, SNAPSHOT = Intent(Kind.NETNS, "n", "s"), Intent(Kind.CNI, "c", "s"), Intent(Kind.SNAPSHOT, "c1", "s", "c1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "lib"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return filler


async def _remount(disk: Path, options: str) -> None:
    await in_thread(subprocess.run, ["mount", "-o", f"remount,{options}", str(disk)], check=True)


async def _intend_until_refused(ledger: Ledger) -> int:
    """What fits into the pages already there is still written. Returns how many intents that was."""
    for number in range(10_000):
        try:
            await ledger.intend(Intent(Kind.CNI, f"more {number}", "s", data={"pad": "x" * 4000}))
        except Unavailable:
            return number
    raise AssertionError("the disk is never full")


@pytest.mark.field_fault("25")
async def test_full_disk(tmp_path: Path, disk: Path) -> None:
    store = await Store.open(tmp_path / "run", disk)
    await store.ledger.intend(NETNS, CNI, SNAPSHOT)
    filler = _fill(disk)
    written = await _intend_until_refused(store.ledger)
    assert len(store.ledger.all()) == 3 + written
    assert store.problem

    # Releasing goes on, and what lives in /run is not touched by it at all.
    await store.ledger.intend(Intent(Kind.NETNS, "another", "s"))
    await store.ledger.drop(Kind.CNI, "c")
    await store.ledger.drop(Kind.SNAPSHOT, "c1")
    assert {resource.id for resource in store.ledger.owned(sandbox="s", container="c1")} == set()
    await store.close()

    # The daemon starts on the full disk; it owns what it owned, and at the most releases something once more.
    store = await Store.open(tmp_path / "run", disk)
    assert {"n", "another"} <= {resource.key for resource in store.ledger.all()}
    with pytest.raises(Unavailable):
        await store.ledger.intend(Intent(Kind.CNI, "new", "s", data={"pad": "x" * 100_000}))
    for resource in store.ledger.all():
        await store.ledger.drop(*resource.id)
    assert store.ledger.all() == []

    filler.unlink()
    assert await store.flush() == 0
    await store.ledger.intend(CNI)
    assert store.problem == ""
    await store.close()
    store = await Store.open(tmp_path / "run", disk)
    assert [resource.key for resource in store.ledger.all()] == ["c"]
    await store.close()


async def test_first_start_on_a_full_disk(tmp_path: Path, disk: Path) -> None:
    filler = _fill(disk)
    store = await Store.open(tmp_path / "run", disk)
    with pytest.raises(Unavailable):
        await store.ledger.intend(CNI)
    await store.ledger.intend(NETNS)
    filler.unlink()
    await store.flush()
    await store.ledger.intend(CNI)
    await store.close()


async def test_read_only_file_system(tmp_path: Path, disk: Path) -> None:
    """As ext4 becomes after an error (errors=remount-ro)."""
    store = await Store.open(tmp_path / "run", disk)
    await store.ledger.intend(CNI, SNAPSHOT)
    await store.close()
    await _remount(disk, "ro")
    store = await Store.open(tmp_path / "run", disk)
    assert {resource.key for resource in store.ledger.all()} == {"c", "c1"}
    with pytest.raises(Unavailable, match="can't be written"):
        await store.ledger.intend(Intent(Kind.CNI, "new", "s"))
    await store.ledger.drop(Kind.CNI, "c")
    assert len(await store.ledger.history(sandbox="s")) == 2
    await _remount(disk, "rw")
    assert await store.flush() == 0
    await store.close()
    store = await Store.open(tmp_path / "run", disk)
    assert {resource.key for resource in store.ledger.all()} == {"c1"}
    await store.close()


async def test_cost_of_a_step_on_tmpfs(disk: Path, tmp_path: Path) -> None:
    """intend, hold and drop cost 50 to 150 µs; this catches a factor of ten, not the machine's mood."""
    await _remount(disk, "size=64m")
    store = await Store.open(disk / "run", tmp_path / "root")
    times: dict[str, list[float]] = {"intend": [], "hold": [], "drop": []}
    for number in range(300):
        intent = Intent(Kind.FIFO, str(number), "s", "c", {"path": "/run/orlop/fifos/c"})
        for verb, step in (
            ("intend", store.ledger.intend(intent)),
            ("hold", store.ledger.hold(*intent.id, {"inode": number})),
            ("drop", store.ledger.drop(*intent.id)),
        ):
            started = time.perf_counter()
            await step
            times[verb].append(time.perf_counter() - started)
    await store.close()
    medians = {verb: sorted(values)[150] * 1e6 for verb, values in times.items()}
    print("median, µs:", {verb: round(value) for verb, value in medians.items()})
    assert max(medians.values()) < 1500
