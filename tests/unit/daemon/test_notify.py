"""sd_notify: to whom, and that it never fails."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent.daemon.notify import notify


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    name = f"@orlop-test-{os.getpid()}" if abstract else "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["/no/such/socket", "@nobody-listens-here", "/", "x" * 200])
def test_a_systemd_that_is_not_there_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_a_systemd_that_does_not_read_does_not_hold_us_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("notify.sock")
        monkeypatch.setenv("NOTIFY_SOCKET", "notify.sock")
        for _ in range(10_000):
            notify("WATCHDOG=1")
