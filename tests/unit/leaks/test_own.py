"""What the daemon releases by itself: its own, sure, seen twice. Others' it leaves alone; what fails it tries less and less often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import failpoints, metrics, timeouts
from agent.errdefs import Unavailable
from agent.leaks import watch
from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.own import Doubts, OwnLeaks
from agent.leaks.paths import file_target
from agent.leaks.reap import Reaper
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from tests.unit.leaks.fakes import CONTAINER, SANDBOX, STRANGER, FakeNode
from tests.unit.leaks.test_reap import FakePlugins


class Own:
    """The one under test, on the files of a fake node."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.doubts = Doubts()
        self.problem = ""
        self.plugins = FakePlugins()
        places = node.places
        reaper = Reaper(Processes(), Cgroups(places.cgroup_root), Mounts(places.proc), Namespaces(), self.plugins)
        self._own = OwnLeaks(reaper, self._doubts, lambda: node.now)

    async def _doubts(self) -> Doubts:
        if self.problem:
            raise Unavailable(self.problem)
        return self.doubts

    async def audits(self, times: int = 1) -> None:
        for _ in range(times):
            await self.gets_all(await self.node.audit())

    async def gets_all(self, found: Sequence[Finding]) -> None:
        await self._own(found)

    async def gets(self, *found: Finding) -> None:
        await self._own(found)

    def bundle(self, name: str = STRANGER) -> Path:
        return self.node.has(self.node.places.bundles / name)


@pytest.fixture
def own(node: FakeNode) -> Own:
    return Own(node)


def sample(name: str, kind: str, owner: str = "orlop") -> float:
    return metrics.registry.get_sample_value(f"orlop_{name}_total", {"kind": kind, "owner": owner}) or 0


def leak(path: Path, owner: Owner = "orlop", state: State = State.LEAKED, kind: Thing = Thing.BUNDLE) -> Finding:
    return Finding(kind, str(path), owner, state, "", "", targets=file_target(path))


async def test_what_two_audits_in_a_row_find_is_released_and_counted(own: Own) -> None:
    before = sample("leaks_reaped", "bundle")
    bundle = own.bundle()
    await own.audits()
    assert bundle.exists()
    await own.audits()
    assert not bundle.exists()
    assert sample("leaks_reaped", "bundle") == before + 1
    await own.audits()
    assert sample("leaks_reaped", "bundle") == before + 1


async def test_what_is_gone_in_between_begins_anew(own: Own) -> None:
    bundle = own.bundle()
    await own.audits()
    await own.gets()  # as after an audit that could not look
    await own.audits()
    assert bundle.exists()
    await own.audits()
    assert not bundle.exists()


@pytest.mark.parametrize("owner", ["containerd", "cri-o", "docker", "unknown"])
async def test_what_is_somebody_elses_or_nobodys_stays(own: Own, owner: Owner) -> None:
    path = own.bundle()
    for _ in range(3):
        await own.gets(leak(path, owner))
    assert path.exists()


@pytest.mark.parametrize("state", [State.UNKNOWN, State.MISSING, State.PENDING])
async def test_what_is_no_leak_stays(own: Own, state: State) -> None:
    path = own.bundle()
    for _ in range(3):
        await own.gets(leak(path, state=state))
    assert path.exists()


async def test_what_is_another_one_by_now_is_refused(own: Own) -> None:
    before = sample("leak_reap_failures", "bundle")
    path = own.bundle()
    found = leak(path)
    path.rename(own.node.top / "aside")
    own.bundle()
    await own.gets(found)
    await own.gets(found)
    assert path.exists()
    assert sample("leak_reap_failures", "bundle") == before + 1


async def test_what_fails_is_tried_less_and_less_often_and_holds_up_nothing_else(own: Own) -> None:
    stuck, other = own.bundle(), own.bundle(SANDBOX)
    own.node.has(stuck / "rootfs/precious")
    before = sample("leak_reap_failures", "bundle")
    await own.audits(2)
    assert (stuck.exists(), other.exists()) == (True, False)
    tried = []
    for minute in range(1, 20):
        own.node.now += 60
        seen = sample("leak_reap_failures", "bundle")
        await own.audits()
        if sample("leak_reap_failures", "bundle") > seen:
            tried.append(minute)
    assert tried == [1, 3, 7, 15]
    assert sample("leak_reap_failures", "bundle") == before + 5
    (stuck / "rootfs/precious").rmdir()
    own.node.now += 3600
    await own.audits()
    assert not stuck.exists()


async def test_dependents_go_first(own: Own, node: FakeNode) -> None:
    own.bundle()
    node.cgroup(f"/orlop-shims/{STRANGER}")
    node.has(node.places.sandboxes / SANDBOX)
    with capture_logs() as logs:
        await own.audits(2)
    assert [entry["kind"] for entry in logs if entry["event"] == "reap: released"] == ["cgroup", "bundle", "sandbox_dir"]
    assert await node.found() == []


async def test_with_a_file_of_the_store_set_aside_nothing_is_touched(own: Own) -> None:
    bundle = own.bundle()
    own.doubts = Doubts("look at /run/orlop/boot.db.corrupt-1")
    with capture_logs() as logs:
        await own.audits(4)
    assert bundle.exists()
    assert [entry["reason"] for entry in logs] == ["look at /run/orlop/boot.db.corrupt-1"]
    own.doubts = Doubts()
    await own.audits()
    assert not bundle.exists()


async def test_what_a_row_that_was_set_aside_is_about_is_not_touched(own: Own, node: FakeNode) -> None:
    kept, left = own.bundle(STRANGER), own.bundle(CONTAINER)
    node.cgroup(f"/orlop-shims/{STRANGER}")
    own.doubts = Doubts(names=frozenset({STRANGER}))
    await own.audits(3)
    assert (kept.exists(), left.exists()) == (True, False)
    assert [finding.kind for finding in await node.audit()] == [Thing.CGROUP, Thing.BUNDLE]


async def test_a_quarantine_that_can_not_be_read(own: Own, node: FakeNode) -> None:
    bundle = own.bundle()
    own.problem = "the disk is gone"
    with capture_logs() as logs:
        await watch(
            node.read,
            node.places,
            node.network,
            pauses=[60] * 3,
            ask=node.ask,
            sleep=node.sleep,
            clock=lambda: node.now,
            release=own.gets_all,
        )
    assert bundle.exists()
    assert [entry["reason"] for entry in logs if "reason" in entry] == ["the disk is gone"] * 2


async def test_the_watch_hands_over_what_it_finds_and_nothing_of_an_audit_that_failed(node: FakeNode) -> None:
    node.has(node.places.bundles / STRANGER)
    handed: list[int] = []
    stat = node.places.proc / "stat"

    async def release(found: Sequence[Finding]) -> None:
        handed.append(len(found))
        if len(handed) == 1:
            stat.rename(node.top / "stat")

    await watch(node.read, node.places, node.network, pauses=[60, 60], ask=node.ask, sleep=node.sleep, release=release)
    assert handed == [1, 0]


async def test_a_release_that_hangs_ends_with_its_budget(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "RELEASE", 0.01)
    before = sample("leak_reap_failures", "bundle")
    bundle = own.bundle()
    failpoints.configure("leaks.reap.act=hang")
    try:
        await own.audits(2)
    finally:
        failpoints.configure("")
    assert bundle.exists()
    assert sample("leak_reap_failures", "bundle") == before + 1
