"""What the ledger has dropped must not come back with a power cut (power matrix, StopPodSandbox at its end)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.network import Attachment
from agent.network.cache import ResultCache
from tests.unit.network.fakes import NETNS, conflist

ATTACHMENT = Attachment("s1", NETNS, "podnet", "1.0.0", conflist())


def test_a_result_is_gone_from_the_disk_before_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResultCache(tmp_path)
    cache.write(ATTACHMENT, {})
    synced: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, os.listdir(path)))

    monkeypatch.setattr(os, "fsync", fsync)
    cache.remove(ATTACHMENT)
    assert synced == [(str(cache.directory), [])]


def test_where_there_is_no_directory_nothing_is_gone(tmp_path: Path) -> None:
    ResultCache(tmp_path / "nowhere").remove(ATTACHMENT)
