from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.snapshots.removal import remove_tree


def test_removes_everything_but_not_what_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").touch()
    (tree / "link").symlink_to(tmp_path / "kept")
    os.mkfifo(tree / "a/pipe")
    for number in range(1500):
        (tree / f"a/{number}").touch()
    remove_tree(tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_nothing_there_and_not_a_directory(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path)
    remove_tree(tmp_path / "link")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [63, 64, 65, 3000])
def test_any_depth(tmp_path: Path, depth: int) -> None:
    """A container can nest directories deeper than any path, any stack and any limit of open files."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ("tree", *["d"] * depth):
        os.mkdir(name, dir_fd=fd)
        above, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []
