"""`orlop bench`: what it refuses before it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bench.plan import Plan
from agent.cli.bench import bench, by_socket
from agent.errdefs import InvalidArgument

SOCKETS = ("/run/a.sock", "unix:///run/b.sock")


def test_values_by_socket() -> None:
    given = ["/run/a.sock=systemctl restart a=b", "unix:///run/a.sock=2", "/run/b.sock=3"]
    assert by_socket("--restart", given, SOCKETS) == {"/run/a.sock": ["systemctl restart a=b", "2"], "/run/b.sock": ["3"]}


@pytest.mark.parametrize("value", ["/run/c.sock=x", "/run/a.sock", "/run/a.sock=", "=x", ""])
def test_a_value_of_no_socket(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--restart .* must be SOCKET=VALUE .* /run/a\.sock, /run/b\.sock"):
        by_socket("--restart", [value], SOCKETS)


async def test_a_family_that_is_not_there() -> None:
    with pytest.raises(InvalidArgument, match="--only 'pod' is none of pods, parallel"):
        await bench(Plan(image="x", families=frozenset({"pod"})), SOCKETS, "table", None, None)


async def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none/b\.json can't be written"):
        await bench(Plan(image="x"), SOCKETS, "table", tmp_path / "none/b.json", None)
