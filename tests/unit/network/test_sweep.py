"""DEL looks for chains that plugins have left where they may have, and nowhere else: it costs a pod's teardown two programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errdefs import Unavailable, Unknown
from agent.network import Attachment
from tests.unit.network.fakes import NETNS, Node, conflist, pod, printed


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def attached(node: Node) -> Attachment:
    node.configure(conflist())
    await node.network.refresh()
    attachment = node.network.plan("s1", pod(), NETNS)
    await node.network.add(attachment)
    return attachment


async def test_not_when_all_went_well(node: Node) -> None:
    await node.network.delete(await attached(node))
    assert node.swept == []


async def test_when_an_add_failed(node: Node) -> None:
    node.runner.answers["ADD portmap"] = printed(returncode=1)
    with pytest.raises(Unknown):
        await attached(node)
    await node.network.delete(node.network.plan("s1", pod(), NETNS))
    assert node.swept == [("podnet", "s1")]


async def test_when_a_delete_failed_before(node: Node) -> None:
    attachment = await attached(node)
    node.runner.answers["DEL bridge"] = printed(returncode=1)
    with pytest.raises(Unknown):
        await node.network.delete(attachment)
    assert node.swept == [], "the plugins come first"
    del node.runner.answers["DEL bridge"]
    await node.network.delete(attachment)
    assert node.swept == [("podnet", "s1")]


async def test_when_an_earlier_daemon_may_have_begun(node: Node) -> None:
    attachment = await attached(node)
    await node.restarted().delete(attachment)
    assert node.swept == [("podnet", "s1")]


async def test_when_the_namespace_is_gone(node: Node) -> None:
    attachment = await attached(node)
    node.pins.inodes.clear()
    await node.network.delete(attachment)
    assert node.swept == [("podnet", "s1")]


async def test_iptables_that_fails_holds_up_no_address(node: Node) -> None:
    attachment = await attached(node)
    node.iptables = Unavailable("ip6tables-save failed")
    await node.restarted().delete(attachment)
    assert node.cached() == [], "it is done with"
