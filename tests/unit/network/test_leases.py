"""Leases whose content a power cut took: they are nobody's, and removed; all others stay."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from agent.network.leases import drop_unwritten


def lease(directory: Path, network: str, ip: str, content: bytes) -> Path:
    (directory / network).mkdir(exist_ok=True)
    path = directory / network / ip
    path.write_bytes(content)
    return path


@pytest.mark.field_fault("19")
def test_only_what_names_nobody_goes(tmp_path: Path) -> None:
    empty = lease(tmp_path, "a", "10.0.0.2", b"")
    zeros = lease(tmp_path, "b", "fd00::2", b"\0" * 80)
    kept = [
        lease(tmp_path, "a", "10.0.0.3", b"0123\r\neth0"),
        lease(tmp_path, "a", "last_reserved_ip.0", b""),
        lease(tmp_path, "c", "10.0.0.2", b"old"),
    ]
    assert [(gone.network, gone.ip) for gone in drop_unwritten(tmp_path)] == [("a", "10.0.0.2"), ("b", "fd00::2")]
    assert not empty.exists()
    assert not zeros.exists()
    assert all(path.exists() for path in kept)
    assert drop_unwritten(tmp_path) == []
    assert not (tmp_path / "c/lock").exists(), "where there is nothing to remove, nothing is made"


def test_one_that_is_being_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """host-local makes and writes it under its lock."""
    path = lease(tmp_path, "a", "10.0.0.2", b"")
    with (tmp_path / "a/lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        slept: list[float] = []
        monkeypatch.setattr("agent.network.leases.time.sleep", slept.append)
        assert drop_unwritten(tmp_path) == []
        assert slept, "it waited for the lock"
        assert path.exists()

        def written(_: float) -> None:
            path.write_bytes(b"0123\r\neth0")
            fcntl.flock(lock, fcntl.LOCK_UN)

        monkeypatch.setattr("agent.network.leases.time.sleep", written)
        assert drop_unwritten(tmp_path) == [], "it is looked at again under the lock"
    assert path.exists()


def test_no_leases(tmp_path: Path) -> None:
    assert drop_unwritten(tmp_path / "none") == []
