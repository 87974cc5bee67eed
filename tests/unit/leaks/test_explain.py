"""What a pod, container, path or process holds, and what holds it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.errdefs import NotFound
from agent.leaks.explain import Explanation, advice, explain, resolve
from agent.leaks.node import Node
from agent.linux.holders import Holder
from agent.linux.mounts import Mounts
from agent.store.kinds import Kind
from agent.store.ledger import State as EntryState
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, STRANGER, FakeNode


class FakeMounts(Mounts):
    """Some mounts are held."""

    def __init__(self, **holders: list[Holder]) -> None:
        super().__init__()
        self.held = holders
        self.asked: list[Path] = []

    async def holders(self, path: Path) -> list[Holder]:
        self.asked.append(path)
        return self.held.get(path.name, [])


def shell(pid: int = 40) -> Holder:
    return Holder(pid, "sh", "cwd", "/run/x/rootfs", "/sys")


async def explained(node: FakeNode, wanted: str, mounts: Mounts | None = None) -> Explanation:
    taken = Node.take(node.places, served=False, now=NOW)
    subject = resolve(wanted, node.ledger, taken)
    return await explain(subject, node.ledger, await node.audit(), taken, mounts or FakeMounts())


async def test_a_pod_with_all_that_is_its_containers(node: FakeNode) -> None:
    node.owns(Kind.CGROUP, "/pods/a")
    node.owns(Kind.TASK, CONTAINER, EntryState.RELEASING, container=CONTAINER, cgroup=f"/pods/a/{CONTAINER}")
    node.cgroup("/pods/a")
    node.process(30, "sleep", cgroup=f"/pods/a/{CONTAINER}")
    mounts = FakeMounts(rootfs=[shell()])
    found = await explained(node, SANDBOX[:6], mounts)
    assert found.subject.title == f"pod {SANDBOX}"
    assert [one.kind for one in found.resources] == [Kind.CGROUP, Kind.TASK]
    rootfs = node.places.bundles / CONTAINER / "rootfs"
    assert {held.what: list(held.by) for held in found.held} == {
        f"mount {rootfs}": [str(shell())],
        "cgroup /pods/a": ["process 30 (sleep)"],
        f"cgroup /pods/a/{CONTAINER}": ["process 30 (sleep)"],
    }
    assert mounts.asked == [rootfs]


async def test_a_container_alone(node: FakeNode) -> None:
    node.owns(Kind.SHIM, SANDBOX)
    node.owns(Kind.TASK, CONTAINER, container=CONTAINER)
    found = await explained(node, CONTAINER)
    assert (found.subject.title, [one.key for one in found.resources]) == (f"container {CONTAINER}", [CONTAINER])
    assert [finding.kind for finding in found.findings] == ["task"]  # its bundle is missing


async def test_a_release_that_is_pending(node: FakeNode) -> None:
    entry = node.owns(Kind.SHM, "/run/shm", EntryState.RELEASING)
    node.ledger[:] = [entry.failed("it is held by process 40", NOW - 60, NOW + 5)]
    [row] = (await explained(node, SANDBOX)).to_json()["resources"]
    assert (row["attempts"], row["error"], row["failed_since"], row["next_attempt"]) == (1, "it is held by process 40", NOW - 60, NOW + 5)
    assert row["advice"].startswith("End what holds the mount; ")


def test_every_kind_has_an_advice(node: FakeNode) -> None:
    for kind in Kind:
        assert advice(node.owns(kind, kind.value)).endswith(". A running daemon tries again by itself")


async def test_the_processes_of_a_network_namespace(node: FakeNode) -> None:
    pin = node.has(node.places.netns_dir) / "cni-1"
    pin.touch()
    node.owns(Kind.NETNS, str(pin))
    for pid in range(30, 42):
        node.process(pid, "sleep", net=pin.stat().st_ino)
    [held] = (await explained(node, str(pin))).held
    assert (held.what, len(held.by), held.by[-1]) == (f"network namespace {pin}", 11, "and 2 more")


async def test_a_path_that_only_processes_hold(node: FakeNode) -> None:
    found = await explained(node, "/mnt//data/", FakeMounts(data=[shell()]))
    assert (found.subject.title, found.subject.path) == ("path /mnt/data", Path("/mnt/data"))
    assert [held.by for held in found.held] == [[str(shell())]]


async def test_a_path_that_is_a_leak(node: FakeNode) -> None:
    left = node.has(node.places.bundles / STRANGER)
    found = await explained(node, str(left))
    assert [finding.what for finding in found.findings] == [str(left)]


async def test_a_process_is_known_by_its_cgroup_and_its_shim(node: FakeNode) -> None:
    node.owns(Kind.TASK, CONTAINER, container=CONTAINER, cgroup=f"/pods/a/{CONTAINER}")
    node.shim(29, SANDBOX)
    node.process(30, "sleep", "9\n", cgroup=f"/pods/a/{CONTAINER}", ppid=29, state="D")
    found = await explained(node, "30")
    assert found.subject.ids == {CONTAINER}
    assert [one.key for one in found.resources] == [CONTAINER]
    assert found.facts == [
        "command: sleep 9\\n",
        f"cgroup: /pods/a/{CONTAINER}",
        "state: waits for the kernel, no signal reaches it",
        f"child of the shim 29 for {SANDBOX}, of {node.places.address}",
        "network namespace: net:[1]",
    ]
    assert (await explained(node, "29")).subject.ids == {SANDBOX}


async def test_a_leaked_init_says_what_it_is(node: FakeNode) -> None:
    fifo = node.places.engine_state / STRANGER / "exec.fifo"
    node.process(9, "runc", "init", comm="runc:[2:INIT]", links=[fifo])
    [finding] = (await explained(node, "9")).findings
    assert "nobody is going to start it" in finding.why


async def test_what_is_gone_has_a_history_still(node: FakeNode) -> None:
    found = await explained(node, STRANGER)
    assert (found.subject.title, found.resources) == (f"former pod or container {STRANGER}", [])


@pytest.mark.parametrize("wanted", ["77", "ffff", "5", "web", ""])
async def test_what_nobody_knows(node: FakeNode, wanted: str) -> None:
    node.owns(Kind.SHIM, SANDBOX)
    with pytest.raises(NotFound):
        await explained(node, wanted)


async def test_the_beginning_of_two(node: FakeNode) -> None:
    node.owns(Kind.TASK, "a", container="abcd1")
    node.owns(Kind.TASK, "b", container="abcd2")
    with pytest.raises(NotFound, match="'abcd' is several of"):
        await explained(node, "abcd")


def test_a_process_of_which_nothing_can_be_read(node: FakeNode) -> None:
    (node.places.proc / "7/stat").mkdir(parents=True)
    taken = Node.take(node.places, served=False, now=NOW)
    with pytest.raises(NotFound, match=f"there is no process 7 that can be looked at: .*{os.strerror(21)}"):
        resolve("7", [], taken)


def test_a_ledger_entry_of_anything_is_json(node: FakeNode) -> None:
    node.owns(Kind.SHIM, SANDBOX)
    subject = resolve(SANDBOX, node.ledger, Node.take(node.places, served=False, now=NOW))
    data: dict[str, Any] = json.loads(json.dumps(Explanation(subject, node.ledger, [], [], []).to_json()))
    assert data["resources"][0]["kind"] == "shim"
