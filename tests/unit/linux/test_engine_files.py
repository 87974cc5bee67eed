"""What runsc keeps of a container, by its names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.linux import engine_files


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("c1_sandbox:c1.state", "c1"),
        ("c2_sandbox:c1.lock", "c2"),
        ("runsc-c1.sock", "c1"),
        ("c1", "c1"),
        ("c1_sandbox:c1.other", "c1_sandbox:c1.other"),
        ("lost+found", "lost+found"),
    ],
)
def test_whose_it_is(name: str, owner: str) -> None:
    assert engine_files.owner(name) == owner


def test_those_of_one_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is elsewhere, where the root's path would be too long for one; a file of that name there is none of it."""
    root, elsewhere = tmp_path / "root", tmp_path / "run"
    assert engine_files.of(root, "c1", elsewhere) == []
    for place in (root, elsewhere):
        place.mkdir()
    for name in ("c1_sandbox:c1.state", "c1_sandbox:c1.lock", "c2_sandbox:c2.state", "c10_sandbox:c10.state"):
        (root / name).touch()
    (elsewhere / "runsc-c2.sock").touch()
    monkeypatch.chdir(elsewhere)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("runsc-c1.sock")
    assert engine_files.of(root, "c1", elsewhere) == [
        root / "c1_sandbox:c1.lock", root / "c1_sandbox:c1.state", elsewhere / "runsc-c1.sock",
    ]  # fmt: skip
    assert engine_files.of(root, "c2", elsewhere) == [root / "c2_sandbox:c2.state"]
