"""A network configuration made from a template: once, whole, and only where there is none."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from agent.errdefs import FailedPrecondition, Unavailable
from agent.network import Network
from agent.network.confdir import GENERATED
from tests.unit.network.fakes import Node, conflist

CIDRS, ROUTES = ["10.0.0.0/24", "fd00::/64"], ["0.0.0.0/0", "::/0"]
RANGES = '[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]'
TEMPLATE = f"""\
{{
  "cniVersion": "1.0.0",
  "name": "generated",
  "plugins": [{{"type": "bridge", "ipam": {{"type": "host-local", "subnet": "{{{{.PodCIDR}}}}", "ranges": {RANGES}}}}}]
}}
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.conf_template = tmp_path / "cni.template"
    node.conf_template.write_text(TEMPLATE)
    return node


@pytest.fixture
def network(node: Node) -> Network:
    return node.restarted()


def files(node: Node) -> list[str]:
    return sorted(path.name for path in node.conf_dir.iterdir())


async def test_where_there_is_none_it_is_made_and_in_force(node: Node, network: Network) -> None:
    assert await network.configure(CIDRS, ROUTES)
    assert files(node) == [GENERATED], "and no temporary file"
    ipam = json.loads((node.conf_dir / GENERATED).read_text())["plugins"][0]["ipam"]
    assert ipam == {"type": "host-local", "subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    assert (node.conf_dir / GENERATED).stat().st_mode & 0o777 == 0o644
    assert network.status().ready


async def test_the_directory_is_made_too(node: Node, network: Network) -> None:
    node.conf_dir.rmdir()
    assert await network.configure(CIDRS, ROUTES)
    assert network.status().ready


@pytest.mark.parametrize("name", ["99-calico.conflist", GENERATED])
async def test_a_node_that_has_one_keeps_it(node: Node, network: Network, name: str) -> None:
    node.configure(conflist(name="present"), name)
    assert not await network.configure(CIDRS, ROUTES)
    assert files(node) == [name]
    assert json.loads((node.conf_dir / name).read_text())["name"] == "present"


async def test_one_that_was_made_stays_for_other_networks(node: Node, network: Network) -> None:
    assert await network.configure(CIDRS, ROUTES)
    assert not await network.configure(["10.9.0.0/24"], ROUTES)
    assert "10.9.0.0" not in (node.conf_dir / GENERATED).read_text()


async def test_calls_at_once_make_one(network: Network) -> None:
    made = await asyncio.gather(*(network.configure(CIDRS, ROUTES) for _ in range(5)))
    assert sorted(made) == [False] * 4 + [True]


async def test_one_that_is_not_usable_is_none(node: Node, network: Network) -> None:
    node.configure(b"{", GENERATED)
    assert await network.configure(CIDRS, ROUTES)
    assert network.status().ready


async def test_without_a_template_nothing_is_made(node: Node) -> None:
    assert not await node.network.configure(CIDRS, ROUTES)
    assert files(node) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Gateway}}", "line 1: {{.Gateway}}: there is no .Gateway"),
        ("not JSON", "what it makes can't be used: network config 10-orlop-net.conflist is not usable: "),
        ('{"cniVersion": "1.0.0", "name": "x", "plugins": []}', "it has no plugins"),
        (b"\xff", "can't decode byte 0xff"),
        (None, "can't be read: No such file or directory"),
    ],
)
async def test_a_template_that_is_not_usable(node: Node, network: Network, text: str | bytes | None, words: str) -> None:
    assert node.conf_template is not None
    node.conf_template.unlink()
    if text is not None:
        node.conf_template.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FailedPrecondition, match=rf"^cni\.conf_template {node.conf_template}") as refusal:
        await network.configure(CIDRS, ROUTES)
    assert words in str(refusal.value)
    assert files(node) == []


async def test_a_full_disk_leaves_nothing(node: Node, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match=f"{GENERATED} can't be written: No space left"):
        await network.configure(CIDRS, ROUTES)
    assert files(node) == []
    monkeypatch.undo()
    assert await network.configure(CIDRS, ROUTES)


async def test_a_link_in_the_way_is_not_written_through(node: Node, network: Network, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (node.conf_dir / f".{GENERATED}.tmp").symlink_to(victim)
    with pytest.raises(Unavailable, match="can't be written"):
        await network.configure(CIDRS, ROUTES)
    assert victim.read_text() == "untouched"
    assert await network.configure(CIDRS, ROUTES), "the link is gone"
