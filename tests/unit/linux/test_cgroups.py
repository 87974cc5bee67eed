"""Cgroups on directories that look like hierarchies; the real ones are in tests/e2e/test_linux_cgroups.py."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import metrics
from agent.errdefs import Busy, DeadlineExceeded, FailedPrecondition, InvalidArgument
from agent.linux import cgroupfs
from agent.linux import cgroups as cgroups_module
from agent.linux.cgroups import Cgroups


def v1(root: Path) -> Path:
    for name in ("cpu,cpuacct", "memory", "freezer", "systemd"):
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").touch()
    (root / "cpu").symlink_to("cpu,cpuacct")
    (root / "not-mounted").mkdir()
    return root


def hybrid(root: Path) -> Path:
    unified = v1(root) / "unified"
    unified.mkdir()
    (unified / "cgroup.procs").touch()
    (unified / "cgroup.controllers").touch()
    return root


def v2(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "cgroup.procs").touch()
    (root / "cgroup.controllers").touch()
    (root / "system.slice").mkdir()
    (root / "system.slice/cgroup.procs").touch()
    return root


def removals(controller: str, result: str, version: str = "v1") -> float:
    labels = {"controller": controller, "version": version, "result": result}
    return metrics.registry.get_sample_value("orlop_cgroup_cleanups_total", labels) or 0


def sample(name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        child.kill()


def test_hierarchies(tmp_path: Path) -> None:
    assert list(cgroupfs.hierarchies(v1(tmp_path / "1"))) == ["cpu,cpuacct", "freezer", "memory", "systemd"]
    assert cgroupfs.hierarchies(hybrid(tmp_path / "h"))[cgroupfs.UNIFIED] == tmp_path / "h/unified"
    assert cgroupfs.hierarchies(v2(tmp_path / "2")) == {cgroupfs.UNIFIED: tmp_path / "2"}
    assert [Cgroups(tmp_path / name).mode for name in "1h2"] == ["v1", "hybrid", "v2"]


def seen_from_a_pod(tmp_path: Path, *procs: tuple[str, str]) -> Path:
    """A /proc with us as process 7; and cgroups with these processes."""
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "self").symlink_to("7")
    (proc / "7/cgroup").write_text("0::/\n")
    for path, pids in procs:
        (tmp_path / "2" / path).mkdir(parents=True)
        (tmp_path / "2" / path / "cgroup.procs").write_text(pids)
    return proc


def test_in_a_cgroup_namespace_cgroups_are_told_as_the_node_has_them(tmp_path: Path) -> None:
    mount = v2(tmp_path / "2")
    proc = seen_from_a_pod(tmp_path, ("kubepods.slice/a.scope", "77\n"), ("kubepods.slice/b.scope", "5\n7\n"))
    seen = {
        1: {"": "/../../init.scope"},
        7: {"": "/"},
        8: {"": "/below"},
        77: {"": "/../a.scope", "name=systemd": "/x"},
        78: {"": "/../.."},
    }
    assert cgroupfs.of_node(seen, proc, mount) == {
        1: {"": "/init.scope"},
        7: {"": "/kubepods.slice/b.scope"},
        8: {"": "/kubepods.slice/b.scope/below"},
        77: {"": "/kubepods.slice/a.scope", "name=systemd": "/x"},
        78: {"": "/"},
    }


def test_the_cgroups_of_a_container_are_not_taken_for_those_of_the_node(tmp_path: Path) -> None:
    mount = v2(tmp_path / "2")
    (mount / "cgroup.procs").write_text("7\n")
    with pytest.raises(FileNotFoundError, match="only those of a container"):
        cgroupfs.of_node({1: {"": "/../../init.scope"}, 7: {"": "/"}}, seen_from_a_pod(tmp_path), mount)


def test_without_a_namespace_of_its_own_cgroups_are_as_they_are_told(tmp_path: Path) -> None:
    seen = {1: {"": "/init.scope"}, 7: {"": "/system.slice/orlop.service"}}
    assert cgroupfs.of_node(seen, tmp_path / "no proc", tmp_path) == seen


@pytest.mark.parametrize("path", ["", "/", "//", "/a/../b", "..", "/a/./b", "/a//b"])
async def test_paths_that_mean_somebody_elses_cgroups_are_refused(tmp_path: Path, path: str) -> None:
    cgroups = Cgroups(v1(tmp_path))
    for call in (cgroups.create(path), cgroups.kill(path, 1), cgroups.remove(path), cgroups.processes(path)):
        with pytest.raises(InvalidArgument, match="doesn't name one cgroup"):
            await call


@pytest.mark.parametrize("make", [v1, hybrid, v2])
async def test_create_and_remove_in_every_hierarchy(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    cgroups = Cgroups(make(tmp_path))
    assert not await cgroups.exists("/pods/x")
    await cgroups.create("/pods/x")
    await cgroups.create("/pods/x")
    for mount in cgroupfs.hierarchies(tmp_path).values():
        assert (mount / "pods/x").is_dir()
    (next(iter(cgroupfs.hierarchies(tmp_path).values())) / "pods/x/made-by-the-container").mkdir()
    await cgroups.remove("/pods/x")
    assert not await cgroups.exists("/pods/x")
    assert await cgroups.exists("/pods"), "what is above is not ours"


async def test_removals_are_counted(tmp_path: Path) -> None:
    cgroups = Cgroups(v1(tmp_path))
    results = [
        ("memory", "removed"),
        ("memory", "gone"),
        ("memory", "busy"),
        ("systemd", "removed"),
        ("systemd", "gone"),
        ("systemd", "busy"),
    ]
    before = [removals(*result) for result in results]
    timed = sample("orlop_cgroup_cleanup_seconds_count")
    (tmp_path / "memory/only-here").mkdir()
    await cgroups.remove("/only-here")
    await cgroups.remove("/only-here")
    (tmp_path / "memory/full").mkdir()
    (tmp_path / "memory/full/cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(Busy, match=rf"can't remove cgroup /full: in it process {os.getpid()} \("):
        await cgroups.remove("/full")
    assert [removals(*result) for result in results] == [number + more for number, more in zip(before, (1, 1, 1, 0, 3, 0), strict=True)]
    assert sample("orlop_cgroup_cleanup_seconds_count") == timed + 2, "what was gone already took no time"


@pytest.mark.field_fault("14")
async def test_a_cgroup_that_the_kernel_holds_is_busy_without_a_process(tmp_path: Path) -> None:
    stuck = v1(tmp_path) / "memory/stuck"
    stuck.mkdir()
    (stuck / "x").touch()  # rmdir fails
    (tmp_path / "systemd/stuck").mkdir()
    before = removals("memory", "busy"), removals("systemd", "removed"), sample("orlop_cgroup_cleanup_retries_total")
    with pytest.raises(Busy, match=f"the kernel holds {stuck}, though no process is in it"):
        await Cgroups(tmp_path).remove("/stuck")
    after = removals("memory", "busy"), removals("systemd", "removed"), sample("orlop_cgroup_cleanup_retries_total")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 4]


async def test_processes_of_the_whole_subtree_in_any_hierarchy(tmp_path: Path) -> None:
    v1(tmp_path)
    for place, pids in {"memory/p": "", "memory/p/c": "7\n8\n", "freezer/p": "8\n9\n", "freezer/other": "1\n"}.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / "cgroup.procs").write_text(pids)
    cgroups = Cgroups(tmp_path)
    assert await cgroups.processes("/p") == {7, 8, 9}
    assert await cgroups.processes("/none") == set()
    await cgroups.wait_empty("/none", 0)
    with pytest.raises(DeadlineExceeded, match="cgroup /p still has process 7"):
        await cgroups.wait_empty("/p", 0.01)


async def test_membership_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5/cgroup").write_text("2:cpu,cpuacct:/a\n0::/b\n")
    cgroups = Cgroups(v1(tmp_path / "root"), proc=tmp_path)
    assert await cgroups.of_process(5) == {"cpu,cpuacct": "/a", "": "/b"}
    assert await cgroups.of_process(6) == {}


async def test_a_new_cpuset_gets_what_its_parent_has_and_one_that_was_there_keeps_its_own(tmp_path: Path) -> None:
    """mkdir of a real one makes the files; here they are there before, empty as the kernel makes them."""
    for place, cpus in {"cpuset": "0-3", "cpuset/foreign": "", "cpuset/foreign/x": ""}.items():
        (tmp_path / place).mkdir()
        for name in ("cgroup.procs", "cpuset.cpus", "cpuset.mems"):
            (tmp_path / place / name).write_text(cpus if name != "cgroup.procs" else "")
    await Cgroups(tmp_path).create("/foreign/x")
    assert (tmp_path / "cpuset/foreign/cpuset.cpus").read_text() == "", "an ancestor that was there is not touched"
    (tmp_path / "cpuset/foreign/cpuset.cpus").write_text("1")
    await Cgroups(tmp_path).create("/foreign/x")
    assert (tmp_path / "cpuset/foreign/x/cpuset.cpus").read_text() == "1"


@pytest.mark.field_fault("13")
async def test_kill_reaches_by_number_thaws_and_gives_up_on_time(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    v1(tmp_path)
    place = tmp_path / "freezer/p"
    place.mkdir()
    (place / "freezer.state").write_text("FROZEN")
    (place / "cgroup.procs").write_text(f"{sleeper.pid}\n")  # a file: the kernel would take it out again
    with pytest.raises(DeadlineExceeded, match=rf"after 0\.02 s cgroup /p still has process {sleeper.pid}"):
        await Cgroups(tmp_path).kill("/p", 0.02)
    assert sleeper.wait() == -signal.SIGKILL
    assert (place / "freezer.state").read_text() == "THAWED"


async def test_our_own_cgroup_is_never_killed(tmp_path: Path) -> None:
    place = v2(tmp_path) / "p"
    place.mkdir()
    (place / "cgroup.kill").touch()
    (place / "cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(FailedPrecondition, match="this very process"):
        await Cgroups(tmp_path).kill("/p", 1)
    assert (place / "cgroup.kill").read_text() == ""


async def test_those_killed_by_number_are_frozen_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else a fork bomb on a machine with many cores is faster than the list is read."""
    place = v1(tmp_path) / "freezer/p"
    place.mkdir()
    (place / "freezer.state").write_text("THAWED")
    (place / "cgroup.procs").write_text("7\n")
    states = []

    def open_pidfd(pid: int) -> None:
        states.append((pid, (place / "freezer.state").read_text()))

    monkeypatch.setattr(cgroups_module, "open_pidfd", open_pidfd)
    with pytest.raises(DeadlineExceeded):
        await Cgroups(tmp_path).kill("/p", 0)
    assert states == [(7, "FROZEN")]
    assert (place / "freezer.state").read_text() == "THAWED"


async def test_kill_of_v2_is_one_write(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    place = v2(tmp_path) / "p"
    place.mkdir()
    (place / "cgroup.kill").touch()
    (place / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    with pytest.raises(DeadlineExceeded):
        await Cgroups(tmp_path).kill("/p", 0)
    assert (place / "cgroup.kill").read_text() == "1"
    assert sleeper.poll() is None, "not also by number"
