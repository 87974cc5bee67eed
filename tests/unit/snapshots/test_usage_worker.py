"""What containers have written is counted as `du` does, in turns, and within a time."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.snapshots import usage_worker
from agent.snapshots.usage_worker import measure


def tree(root: Path, directories: int, files: int = 1) -> str:
    for number in range(directories):
        (root / f"d{number}").mkdir(parents=True)
        for file in range(files):
            (root / f"d{number}/f{file}").write_bytes(b"x" * 5000)
    return str(root)


def test_blocks_and_inodes_each_once(tmp_path: Path) -> None:
    tree(tmp_path / "a", 2)
    os.link(tmp_path / "a/d0/f0", tmp_path / "a/d1/same")
    (tmp_path / "a/link").symlink_to("/")
    with (tmp_path / "a/sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    [(size, inodes, finished)] = measure([str(tmp_path / "a")], 60)
    expected = sum(path.lstat().st_blocks * 512 for path in (tmp_path / "a").rglob("*") if path.name != "same")
    assert (size, inodes, finished) == (expected, 6, True)


def test_one_that_is_gone_or_empty(tmp_path: Path) -> None:
    assert measure([str(tmp_path / "gone"), str(tmp_path)], 60) == [(0, 0, True), (0, 0, True)]
    assert measure([], 60) == []


def test_a_directory_that_goes_meanwhile_costs_no_other_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, 3)
    plain = os.scandir

    def vanished(path: str) -> object:
        if path.endswith("d1"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", vanished)
    assert measure([str(tmp_path)], 60)[0][1:] == (5, True)


def test_a_huge_one_keeps_no_other_from_being_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock ticks once a turn: by the end, the small ones are done and the huge one has what was counted."""
    monkeypatch.setattr(usage_worker, "_PER_TURN", 10)
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    huge = tree(tmp_path / "huge", 1, files=500)
    small = [tree(tmp_path / f"small{number}", 1) for number in range(3)]
    first, *others = measure([huge, *small], 25)
    assert [other[1:] for other in others] == [(2, True)] * 3
    assert not first[2]
    assert 20 <= first[1] < 500, "it's at least that much"


def test_as_a_process(tmp_path: Path) -> None:
    request = json.dumps({"directories": [tree(tmp_path, 1)], "seconds": 60})
    argv = [sys.executable, "-I", "-m", "agent.snapshots.usage_worker"]
    done = subprocess.run(argv, input=request, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0][1:] == [2, True]
