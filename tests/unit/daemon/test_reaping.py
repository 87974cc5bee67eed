"""What the daemon may take for its own leak: not what its ledger has lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.daemon import reaping
from agent.identifiers import new_id
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.reap import Step
from agent.leaks.targets import FileTarget
from agent.store.ledger import Intent, Kind, Ledger
from agent.store.store import Store

ADDRESS = "/run/orlop/orlop.sock"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "run", tmp_path / "lib")
    yield store
    await store.close()


@dataclass
class Reaper:
    released: list[str]

    async def release(self, finding: Finding) -> list[Step]:
        self.released.append(finding.what)
        return [Step(finding, finding.what, "released")]


def leak(name: str) -> Finding:
    path = Path("/run/orlop/x", name)
    return Finding(Thing.BUNDLE, str(path), "orlop", State.LEAKED, "", "", targets=(FileTarget(path, 1, 2),))


async def released(store: Store, *found: Finding) -> list[str]:
    reaper = Reaper([])
    own = reaping.own_leaks(store, cast(Any, reaper))
    for _ in range(2):
        await own(found)
    return [what.rpartition("/")[2] for what in reaper.released]


async def test_a_row_that_can_not_be_read_keeps_what_it_names(store: Store, tmp_path: Path) -> None:
    container, sandbox, other = new_id(), new_id(), new_id()
    await store.ledger.intend(Intent(Kind.TASK, container, sandbox=sandbox))
    await store._boot.write(lambda connection: connection.execute("UPDATE resources SET kind = 'wormhole'"))
    await store.close()
    again = await Store.open(tmp_path / "run", tmp_path / "lib")
    assert again.ledger.all() == []
    assert await released(again, leak(container), leak(sandbox), leak(other)) == [other]
    await again.close()


def shims(*addresses: str) -> Any:
    """A process table with one for each of these runtimes, and others."""

    async def table() -> Sequence[Any]:
        rows = [SimpleNamespace(pid=5, cmdline=("/sbin/init",))]
        return rows + [SimpleNamespace(pid=7, cmdline=("containerd-shim-runc-v2", "-id", "x", "-address", each)) for each in addresses]

    return SimpleNamespace(table=table)


async def test_a_ledger_that_was_emptied_under_running_pods(store: Store) -> None:
    await reaping.look_for_loss(store, shims(ADDRESS), ADDRESS)
    [marker] = await store.corrupt_files()
    assert await released(store, leak(new_id())) == []
    marker.unlink()
    assert len(await released(store, leak(new_id()))) == 1


async def test_a_ledger_that_is_as_it_should_be(store: Store) -> None:
    await reaping.look_for_loss(store, shims("/run/containerd/containerd.sock"), ADDRESS)
    await store.ledger.intend(Intent(Kind.SHIM, "s", sandbox="s"))
    await reaping.look_for_loss(store, shims(ADDRESS), ADDRESS)
    assert await store.corrupt_files() == []


async def test_the_journal_is_asked_once_for_each_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.ledger.intend(Intent(Kind.NETNS, "/run/netns/cni-1", sandbox="s1"), Intent(Kind.SNAPSHOT, "k", sandbox="s2", container="c"))
    await store.ledger.drop(Kind.NETNS, "/run/netns/cni-1")
    asked: list[list[str]] = []
    remembers = Ledger.remembers

    async def counting(ledger: Ledger, names: list[str]) -> set[str]:
        asked.append(sorted(names))
        return await remembers(ledger, names)

    monkeypatch.setattr(Ledger, "remembers", counting)
    ask = reaping.remembered(store.ledger)
    assert await ask({"/run/netns/cni-1", "s2", "c", "nobody"}) == {"/run/netns/cni-1", "s2", "c"}
    assert await ask({"s2", "nobody", "s1"}) == {"s2", "s1"}
    assert asked == [["/run/netns/cni-1", "c", "nobody", "s2"], ["s1"]]
