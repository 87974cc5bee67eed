"""What lies on the disk: the configuration directory, the result cache, host-local's leases."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from agent.network.cache import ResultCache
from agent.network.confdir import Look, look
from agent.network.leases import Lease, read_leases
from tests.unit.network.fakes import conflist, result
from tests.unit.network.test_attachment import ATTACHMENT


def seen(directory: Path, last: Look | None = None) -> Look:
    return look(directory, last or Look())


def test_a_directory_that_is_not_there_or_empty_has_no_network(tmp_path: Path) -> None:
    assert seen(tmp_path) == seen(tmp_path / "nowhere") == Look()


def test_files_are_taken_by_suffix_in_lexical_order(tmp_path: Path) -> None:
    (tmp_path / "00-note.txt").write_text("{")
    (tmp_path / "05-dir.conflist").mkdir()
    (tmp_path / "20-a.conflist").write_bytes(conflist(name="a"))
    (tmp_path / "9-b.conflist").write_bytes(conflist(name="b"))
    found = seen(tmp_path)
    assert found.network is not None
    assert found.network.name == "a"
    assert not found.selection.rejected


def test_an_unchanged_directory_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.conflist").write_bytes(conflist())
    first = seen(tmp_path)
    assert seen(tmp_path, first) is first
    (tmp_path / "a.conflist").write_bytes(conflist(name="changed"))
    network = seen(tmp_path, first).network
    assert network is not None
    assert network.name == "changed"


def test_what_is_no_file_is_named_and_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10-fifo.conf")
    (tmp_path / "20-dangling.conf").symlink_to("nowhere")
    with (tmp_path / "30-huge.conf").open("wb") as file:
        file.truncate(2 << 20)
    rejected = seen(tmp_path).selection.rejected
    assert "10-fifo.conf can't be read: not a regular file" in rejected[0]
    assert "20-dangling.conf can't be read: No such file" in rejected[1]
    assert "30-huge.conf can't be read: larger than" in rejected[2]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(conflist())
    (tmp_path / "10.conflist").symlink_to("data")
    assert seen(tmp_path).network is not None


def test_a_directory_that_can_not_be_listed_keeps_the_last_network(tmp_path: Path) -> None:
    directory = tmp_path / "net.d"
    directory.mkdir()
    (directory / "10.conflist").write_bytes(conflist())
    good = seen(directory)
    directory.rename(tmp_path / "away")
    directory.write_text("")  # a file in its place
    broken = seen(directory, good)
    assert broken.network == good.network
    assert "can't be read: Not a directory" in broken.problem
    assert seen(directory, broken) is broken
    directory.unlink()
    (tmp_path / "away").rename(directory)
    assert seen(directory, broken) == good


def test_the_cache_is_libcnis(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.write(ATTACHMENT, result())
    path = tmp_path / "results" / "podnet-s1-eth0"
    content = json.loads(path.read_bytes())
    assert base64.b64decode(content.pop("config")) == ATTACHMENT.config
    assert content == {
        "kind": "cniCacheV1",
        "containerId": "s1",
        "ifName": "eth0",
        "networkName": "podnet",
        "netns": "/run/netns/cni-1",
        "cniArgs": [["IgnoreUnknown", "1"]],
        "capabilityArgs": {"dns": {"servers": ["10.0.0.10"]}},
        "result": result(),
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert cache.read(ATTACHMENT) == result()


def test_the_cache_forgets_without_a_trace(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.remove(ATTACHMENT)
    cache.write(ATTACHMENT, result())
    (tmp_path / "results" / ".podnet-s1-eth0").touch()  # died while writing
    cache.remove(ATTACHMENT)
    assert cache.read(ATTACHMENT) is None
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{}", "not a cached result"),
        (b'{"kind": "cniCacheV1", "containerId": "s2", "result": {}}', "not a cached result of this sandbox"),
        (b'{"kind": "cniCacheV1", "containerId": "s1", "result": 1}', "not a cached result"),
    ],
)
def test_a_torn_or_foreign_cache_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    cache = ResultCache(tmp_path)
    cache.directory.mkdir()
    cache.path(ATTACHMENT).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        cache.read(ATTACHMENT)


def test_leases(tmp_path: Path) -> None:
    network = tmp_path / "podnet"
    network.mkdir()
    (network / "10.1.0.2").write_bytes(b"s1\r\neth0")
    (network / "10.1.0.3").write_bytes(b"s2")  # older host-local
    (network / "10.1.0.4").touch()
    (network / "fd00::2").write_bytes(b"s1\r\neth0")
    (network / "10.1.0.5").mkdir()
    (network / "last_reserved_ip.0").write_bytes(b"10.1.0.4")
    (network / "lock").touch()
    (tmp_path / "stray").touch()
    assert read_leases(tmp_path) == [
        Lease("podnet", "10.1.0.2", "s1", "eth0", network / "10.1.0.2"),
        Lease("podnet", "10.1.0.3", "s2", "", network / "10.1.0.3"),
        Lease("podnet", "10.1.0.4", "", "", network / "10.1.0.4"),
        Lease("podnet", "fd00::2", "s1", "eth0", network / "fd00::2"),
    ]


def test_without_host_local_there_are_no_leases(tmp_path: Path) -> None:
    assert read_leases(tmp_path / "nowhere") == []
