"""Two daemons on one state directory, and the moment after a daemon was killed."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from agent.errdefs import FailedPrecondition
from agent.store.store import Store


async def test_a_second_daemon_is_refused_with_a_sentence(tmp_path: Path) -> None:
    first = await Store.open(tmp_path / "run", tmp_path / "lib", boot_id="b")
    with pytest.raises(FailedPrecondition, match="another orlop daemon uses"):
        await Store.open(tmp_path / "run", tmp_path / "lib", boot_id="b")
    await first.close()


async def test_a_lock_that_goes_within_a_moment_is_waited_for(tmp_path: Path) -> None:
    state = tmp_path / "run"
    state.mkdir()
    held = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    release = threading.Timer(0.1, os.close, (held,))
    release.start()
    store = await Store.open(state, tmp_path / "lib", boot_id="b")
    await store.close()
    release.join()
