"""What is asked of systemd, by stand-ins of its tools that write down how they were called."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errdefs import Unavailable
from agent.linux.processes import Processes
from agent.linux.systemd import Systemd


@pytest.fixture
async def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Systemd]:
    processes = Processes()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "transient").mkdir()
    yield Systemd(processes, tmp_path / "transient")
    await processes.stop()


def tool(tmp_path: Path, name: str, end: str = "") -> None:
    (tmp_path / name).write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {tmp_path}/calls\n{end}\n')
    (tmp_path / name).chmod(0o755)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


async def test_a_slice(systemd: Systemd, tmp_path: Path) -> None:
    tool(tmp_path, "systemctl")
    await systemd.start_slice("a-b.slice")
    await systemd.stop("a-b.slice")
    assert calls(tmp_path) == ["systemctl start --quiet a-b.slice", "systemctl stop --quiet a-b.slice"]


async def test_what_systemd_says_is_told(systemd: Systemd, tmp_path: Path) -> None:
    tool(tmp_path, "systemctl", "echo 'Unit name a is not valid.' >&2; exit 1")
    with pytest.raises(Unavailable, match=re.escape("systemctl start --quiet a ended with 1: Unit name a is not valid.")):
        await systemd.start_slice("a")
    with pytest.raises(Unavailable, match="not valid"):
        await systemd.stop("a")


async def test_a_unit_that_is_not_there_is_stopped(systemd: Systemd, tmp_path: Path) -> None:
    tool(tmp_path, "systemctl", "echo 'Unit a.slice not loaded.' >&2; exit 5")
    await systemd.stop("a.slice")
    with pytest.raises(Unavailable):
        await systemd.start_slice("a.slice")


async def test_a_delegated_unit_is_made_once(systemd: Systemd, tmp_path: Path) -> None:
    tool(tmp_path, "systemd-run", f"touch {tmp_path}/transient/shims.service")
    await systemd.delegate("shims.service")
    await systemd.delegate("shims.service")
    [call] = calls(tmp_path)
    assert "--unit=shims.service" in call
    assert "--property Delegate=yes" in call


async def test_without_its_tools(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="systemctl can't be run"):
        await systemd.start_slice("a.slice")
