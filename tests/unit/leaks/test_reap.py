"""Releasing: in order, and only what is still the very thing that was found."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.errdefs import Unavailable
from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.paths import cgroup_target, file_target
from agent.leaks.reap import ORDER, Reaper, Step, plan
from agent.leaks.targets import AttachmentTarget, CgroupTarget, ChainTarget, MountTarget, PinTarget, ProcessTarget, Target
from agent.linux import procfs
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from tests.unit.leaks.fakes import STRANGER, FakeNode


def leak(*targets: Target, kind: Thing = Thing.BUNDLE, owner: Owner = "orlop", state: State = State.LEAKED) -> Finding:
    return Finding(kind, "it", owner, state, "", "", targets=targets)


class FakePlugins:
    """CNI DEL, and iptables."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.chains: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    async def detach(self, file: Path) -> None:
        self.files.append(file)
        if self.error:
            raise self.error

    async def remove_chain(self, tool: str, name: str, sandbox: str) -> bool:
        self.chains.append((tool, name, sandbox))
        return len(self.chains) == 1


@pytest.fixture
def plugins() -> FakePlugins:
    return FakePlugins()


@pytest.fixture
def reaper(node: FakeNode, plugins: FakePlugins) -> Reaper:
    """Processes and files are real, mounts and cgroups are those of the fake node."""
    places = node.places
    return Reaper(Processes(), Cgroups(places.cgroup_root), Mounts(places.proc), Namespaces(), plugins)


async def only(reaper: Reaper, *targets: Target) -> Step:
    [step] = await reaper.release(leak(*targets))
    return step


# ---- the plan


def test_everything_that_pins_goes_before_what_it_pins() -> None:
    here = Path("/x")
    found = [leak(*file_target(Path("/")), kind=kind) for kind in reversed(ORDER)]
    assert [finding.kind for finding in plan(found)] == list(ORDER)
    mounts = [leak(MountTarget(here, number), kind=Thing.MOUNT) for number in (5, 9, 7)]
    assert [finding.targets[0] for finding in plan(mounts)] == [MountTarget(here, number) for number in (9, 7, 5)]
    cgroups = [leak(CgroupTarget(path, here, 1), kind=Thing.CGROUP) for path in ("/pod", "/pod/a/b", "/pod/a")]
    assert [finding.targets[0] for finding in plan(cgroups)] == [CgroupTarget(path, here, 1) for path in ("/pod/a/b", "/pod/a", "/pod")]


@pytest.mark.parametrize("state", [State.UNKNOWN, State.MISSING, State.PENDING])
def test_only_leaks_are_released(state: State) -> None:
    assert plan([leak(*file_target(Path("/")), state=state)]) == []
    assert plan([leak()]) == []


def test_a_kind_and_an_owner() -> None:
    owners: tuple[Owner, ...] = ("orlop", "containerd")
    found = [leak(*file_target(Path("/")), kind=kind, owner=owner) for kind in (Thing.FIFO, Thing.CNI) for owner in owners]
    assert [(one.kind, one.owner) for one in plan(found, kinds=["cni"], owners=["containerd"])] == [("cni", "containerd")]
    assert len(plan(found)) == 4


# ---- processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def target_of(process: subprocess.Popen[bytes]) -> ProcessTarget:
    [row] = [row for row in procfs.scan(Path("/proc")) if row.pid == process.pid]
    return ProcessTarget(row.pid, row.start_time, max(row.cgroups.values(), key=len, default=""))


async def test_a_process_is_killed_and_awaited(reaper: Reaper, child: subprocess.Popen[bytes]) -> None:
    target = target_of(child)
    with capture_logs() as logs:
        assert (await only(reaper, target)).outcome == "released"
    assert child.wait() == -signal.SIGKILL
    assert (await only(reaper, target)).outcome == "gone"
    assert [(entry["event"], entry["what"]) for entry in logs] == [("reap: released", f"process {child.pid}")]


async def test_a_shim_may_end_in_order(reaper: Reaper, child: subprocess.Popen[bytes]) -> None:
    assert (await only(reaper, replace(target_of(child), graceful=True))).outcome == "released"
    assert child.wait() == -signal.SIGTERM


@pytest.mark.parametrize("change", ["number", "cgroup"])
async def test_a_process_that_is_another_one_lives(reaper: Reaper, child: subprocess.Popen[bytes], change: str) -> None:
    target = target_of(child)
    if change == "number":
        assert (await only(reaper, replace(target, start_time=target.start_time - 1))).outcome == "gone"
    else:
        step = await only(reaper, replace(target, cgroup="/kubepods/other"))
        assert (step.outcome, "was in /kubepods/other: somebody has moved it" in step.detail) == ("refused", True)
    assert child.poll() is None


# ---- cgroups, mounts, pins


async def test_a_cgroup(reaper: Reaper, node: FakeNode) -> None:
    node.cgroup("/kube/pod/a/b")
    directory = node.places.cgroup_root / "kube/pod/a"
    [target] = cgroup_target("/kube/pod/a", directory)
    assert (await only(reaper, replace(target, inode=1))).outcome == "refused"
    assert directory.exists()
    assert (await only(reaper, target)).outcome == "released"
    assert [path.name for path in directory.parent.iterdir()] == []
    assert (await only(reaper, target)).outcome == "gone"


async def test_a_mount_that_is_another_one_stays(reaper: Reaper, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    place = node.top / "rootfs"
    undone: list[Path] = []

    async def unmount(_: Mounts, path: Path) -> None:
        undone.append(path)

    monkeypatch.setattr(Mounts, "unmount", unmount)
    node.mounts((place, "overlay", "rw"))
    assert (await only(reaper, MountTarget(place, 19))).outcome == "gone"
    node.mounts((place, "overlay", "rw"), (place, "tmpfs", "rw"))
    assert (await only(reaper, MountTarget(place, 20))).outcome == "refused"
    assert undone == []
    assert (await only(reaper, MountTarget(place, 21))).outcome == "released"
    assert undone == [place]


async def test_a_pin(reaper: Reaper, tmp_path: Path) -> None:
    pin = tmp_path / "cni-1"
    assert (await only(reaper, PinTarget(pin, None))).outcome == "gone"
    pin.symlink_to("/proc/self/ns/net")
    assert (await only(reaper, PinTarget(pin, None))).outcome == "refused"
    pin.unlink()
    pin.touch()
    assert (await only(reaper, PinTarget(pin, 5))).outcome == "refused"
    assert (await only(reaper, PinTarget(pin, None))).outcome == "released"
    assert not pin.exists()


# ---- files


def tree(node: FakeNode) -> Path:
    bundle = node.has(node.top / "bundles" / STRANGER / "rootfs").parent
    (bundle / "config.json").symlink_to("/etc/passwd")
    return bundle


async def test_a_directory_with_all_that_is_in_it_and_no_link_followed(reaper: Reaper, node: FakeNode) -> None:
    bundle = tree(node)
    outside = node.has(node.top / "outside/kept")
    (bundle / "work").symlink_to(outside.parent)
    [target] = file_target(bundle)
    assert (await only(reaper, target)).outcome == "released"
    assert not bundle.exists()
    assert outside.exists()
    assert (await only(reaper, target)).outcome == "gone"


async def test_a_directory_that_became_a_link_or_another_one(reaper: Reaper, node: FakeNode) -> None:
    bundle = tree(node)
    [target] = file_target(bundle)
    bundle.rename(node.top / "aside")
    bundle.symlink_to(node.top / "aside")
    assert "another one than was found" in (await only(reaper, target)).detail
    bundle.unlink()
    bundle.mkdir()
    assert (await only(reaper, target)).outcome == "refused"
    assert (node.top / "aside/config.json").is_symlink()


async def test_a_link_on_the_way(reaper: Reaper, node: FakeNode) -> None:
    bundle = tree(node)
    [target] = file_target(bundle)
    bundle.parent.rename(node.top / "elsewhere")
    bundle.parent.symlink_to(node.top / "elsewhere")
    step = await only(reaper, target)
    assert (step.outcome, "no directory any more, or a link" in step.detail) == ("refused", True)
    assert (node.top / "elsewhere" / STRANGER).exists()


async def test_a_directory_in_which_something_is_mounted(reaper: Reaper, node: FakeNode) -> None:
    bundle = tree(node)
    node.mounts((bundle / "rootfs", "overlay", "rw"))
    step = await only(reaper, *file_target(bundle))
    assert (step.outcome, f"has {bundle}/rootfs mounted in it" in step.detail) == ("refused", True)
    assert bundle.exists()


async def test_a_rootfs_with_somebodys_files(reaper: Reaper, node: FakeNode) -> None:
    bundle = tree(node)
    (bundle / "rootfs/precious").touch()
    step = await only(reaper, *file_target(bundle))
    assert (step.outcome, "is not empty though nothing is mounted there: precious" in step.detail) == ("refused", True)


async def test_a_socket_at_which_somebody_listens(reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its path may be too long
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        assert (await only(reaper, *file_target(path, listening=True))).outcome == "refused"
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert (await only(reaper, *file_target(path, listening=True))).outcome == "released"
    assert not path.exists()


# ---- attachments


async def test_an_attachment_is_given_back_by_its_plugins(reaper: Reaper, plugins: FakePlugins, tmp_path: Path) -> None:
    file = tmp_path / "result"
    file.touch()
    [target] = map(AttachmentTarget, file_target(file))
    assert (await only(reaper, target)).outcome == "released"
    assert plugins.files == [file]
    plugins.error = Unavailable("the plugin is missing")
    step = await only(reaper, target)
    assert (step.outcome, step.detail) == ("failed", "the plugin is missing")
    os.rename(file, tmp_path / "aside")
    assert (await only(reaper, target)).outcome == "gone"


async def test_a_chain(reaper: Reaper, plugins: FakePlugins) -> None:
    target = ChainTarget("iptables", "CNI-1", STRANGER)
    assert [(await only(reaper, target)).outcome for _ in range(2)] == ["released", "gone"]
    assert plugins.chains == [("iptables", "CNI-1", STRANGER)] * 2


async def test_what_can_not_be_released_keeps_nothing_else(reaper: Reaper, plugins: FakePlugins, node: FakeNode) -> None:
    bundle = tree(node)
    plugins.error = OSError(5, "disk")
    steps = await reaper.release(leak(*map(AttachmentTarget, file_target(bundle)), *file_target(bundle)))
    assert [step.outcome for step in steps] == ["failed", "released"]
