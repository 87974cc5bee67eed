"""The log copier on a file system that fills up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.linux.mounts import Mount, Mounts
from agent.linux.processes import Processes
from agent.logs import LogCopier
from tests.unit.logs.toolbox import RECORD, Shim, until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A tmpfs of 256 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounts = Mounts()
    await mounts.mount(Mount("tmpfs", "tmpfs", ("size=256k", "mode=0755")), directory)
    yield directory
    await mounts.unmount(directory)


@pytest.fixture
async def daemon(small: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LogCopier]:
    processes = Processes()
    state = tmp_path_factory.mktemp("n")
    daemon = LogCopier(state, processes)
    await daemon.start()
    (copier,) = (row.pid for row in await processes.table() if str(state / "log-copier.sock") in row.cmdline)
    yield daemon
    for container in await daemon.containers():
        await daemon.close(container.id)
    await daemon.stop()
    await until(lambda: not Path(f"/proc/{copier}").exists(), "the end of the copier")
    await processes.stop()


async def test_a_full_file_system_costs_log_lines_until_there_is_room_again(small: Path, daemon: LogCopier) -> None:
    filler = small / "filler"
    filler.write_bytes(b"x" * (200 << 10))
    shim = Shim(await daemon.open("c1", small / "0.log", terminal=False))
    flood = b"too much\n" * 100_000
    shim.write(flood)  # and it isn't blocked
    while (state := (await daemon.containers())[0]).bytes < len(flood):
        assert state.dropped < 100 * len(flood)
    assert state.errors > 0
    assert 0 < (small / "0.log").stat().st_size < 64 << 10

    filler.unlink()
    shim.write(b"after\n")
    shim.close()
    result = await daemon.drain("c1", 20)
    assert (result.result, result.dropped) == ("error", state.dropped)
    *records, rest = (small / "0.log").read_bytes().split(b"\n")
    assert rest == b""
    found = [match[4] for record in records if (match := RECORD.fullmatch(record))]
    assert found[-1] == b"after"
    assert len(found) >= len(records) - 1  # all but one that was cut off
