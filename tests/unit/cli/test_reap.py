"""`orlop reap`: what is released, what is asked before, and the exit code."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.cli import reap as command
from agent.cli.reap import CANNOT_LOOK, LEFT, RELEASED, Wish
from agent.daemon import layout
from agent.errdefs import DeadlineExceeded
from agent.leaks import audit
from agent.leaks.owners import TASKS
from agent.leaks.reap import Reaper
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from tests.unit.cli.test_audit import FakeDaemon, settings
from tests.unit.leaks.fakes import NOW, STRANGER, FakeNode
from tests.unit.leaks.test_reap import FakePlugins

WISH = Wish(kinds=(), owners=(), dry_run=False, yes=False, grace=300, form="json")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A bundle of ours was left, and one of containerd's."""
    node = FakeNode(tmp_path)
    monkeypatch.setattr(layout, "places", lambda _: node.places)
    monkeypatch.setattr(command, "Inventory", lambda: node.network)
    monkeypatch.setattr(command, "find", functools.partial(audit, settle=0, ask=node.ask, clock=lambda: NOW))
    node.has(ours(node))
    node.containerd()
    os.utime(node.has(theirs(node)), (NOW - 1000,) * 2)
    return node


def ours(node: FakeNode) -> Path:
    return node.places.bundles / STRANGER


def theirs(node: FakeNode) -> Path:
    return node.top / "run/containerd" / TASKS / "k8s.io" / STRANGER


async def reap(node: FakeNode, wish: Wish, answer: bool | None = None) -> tuple[int, list[str]]:
    """The exit code and the questions; None: there may be none."""
    questions: list[str] = []

    def agreed(question: str) -> bool:
        questions.append(question)
        assert answer is not None, question
        return answer

    reaper = Reaper(Processes(), Cgroups(node.places.cgroup_root), Mounts(node.places.proc), Namespaces(), FakePlugins())
    return await command.reap(settings(node), None, reaper, wish, agreed=agreed), questions


async def test_a_dry_run_touches_nothing(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert await reap(node, Wish((), (), dry_run=True, yes=False, grace=300, form="json")) == (LEFT, [])
    assert {row["what"] for row in json.loads(capsys.readouterr().out)} == {str(ours(node)), str(theirs(node))}
    assert ours(node).exists()
    assert theirs(node).exists()


@pytest.mark.parametrize("answer", [True, False])
async def test_another_runtimes_things_are_asked_for(node: FakeNode, answer: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with capture_logs():
        code, questions = await reap(node, WISH, answer)
    assert questions == ["Release these 1 things of containerd (1 bundle)?"]
    assert code == (RELEASED if answer else LEFT)
    assert (ours(node).exists(), theirs(node).exists()) == (False, not answer)
    shown = capsys.readouterr()
    assert str(theirs(node)) in shown.err
    assert [row["outcome"] for row in json.loads(shown.out)] == ["released"] * (1 + answer)


async def test_yes_asks_nothing(node: FakeNode) -> None:
    assert await reap(node, Wish((), (), dry_run=False, yes=True, grace=300, form="table")) == (RELEASED, [])
    assert not theirs(node).exists()
    assert await reap(node, WISH) == (RELEASED, [])


async def test_what_is_only_ours(node: FakeNode) -> None:
    assert await reap(node, Wish(("bundle",), ("orlop",), dry_run=False, yes=False, grace=300, form="json")) == (RELEASED, [])
    assert theirs(node).exists()


async def test_what_refuses_is_left(node: FakeNode) -> None:
    node.has(ours(node) / "rootfs/somebodys")
    assert await reap(node, Wish(("bundle",), ("orlop",), dry_run=False, yes=False, grace=300, form="json")) == (LEFT, [])
    assert ours(node).exists()


async def test_without_a_look_nothing_is_released(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    reaper = Reaper(Processes(), Cgroups(), Mounts(), Namespaces(), FakePlugins())
    daemon = FakeDaemon(node, DeadlineExceeded("it hangs"))
    code = await command.reap(settings(node), daemon, reaper, WISH, agreed=lambda _: True)
    assert code == CANNOT_LOOK
    assert "nothing was released: it hangs" in capsys.readouterr().err
    assert ours(node).exists()
