"""A cgroup's numbers on v1 and v2, whole, in part, and while it goes away."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.linux import files
from agent.linux.cgroups import Cgroups
from agent.stats import Cgroup, Memory, Pressure, Sample, Stall, Swap
from tests.unit.stats import trees

MIB = 1 << 20
POD = "/kubepods/pod1"
PATH = f"{POD}/abc"
MEMORY = Memory(100 * MIB, 80 * MIB, rss=30 * MIB, page_faults=700, major_page_faults=3, available=120 * MIB)
SWAP = Swap(4096, available=4096)
CALM = Stall(0, 0, 0, 0)

Make = Callable[[Path], Cgroup]


def read(cgroup: Cgroup) -> Sample:
    sample = cgroup.read()
    assert sample is not None
    return sample


def on_v2(root: Path, text: dict[str, str] | None = None, *, without: tuple[str, ...] = ()) -> Cgroup:
    trees.v2(root, PATH, {name: content for name, content in {**trees.V2_FILES, **(text or {})}.items() if name not in without})
    return Cgroup.of_process({"": PATH}, trees.controllers(root))


def on_v1(root: Path, memory: dict[str, str] | None = None) -> Cgroup:
    content = {**trees.V1_FILES, "memory": {**trees.V1_FILES["memory"], **(memory or {})}}
    trees.v1(root, PATH, content)
    return Cgroup.of_process({"cpu,cpuacct": PATH, "memory": PATH, "pids": PATH, "name=systemd": "/"}, trees.controllers(root))


class TestV2:
    def test_all_of_it(self, tmp_path: Path) -> None:
        before = time.time_ns(), time.monotonic_ns()
        sample = read(on_v2(tmp_path))
        assert before[0] <= sample.time <= time.time_ns()
        assert before[1] <= sample.clock <= time.monotonic_ns()
        assert sample.cpu == 1_500_000_000
        assert sample.memory == MEMORY
        assert sample.swap == SWAP
        assert sample.tasks == 7
        assert sample.cpu_pressure == Pressure(Stall(1.5, 0.25, 0.05, 12_345_000), CALM)
        assert sample.memory_pressure == Pressure(Stall(0, 0, 0, 1000), Stall(0, 0, 0, 2000))
        assert sample.io_pressure == Pressure(Stall(0, 0, 99.99, 3000), Stall(0, 0, 12.34, 4000))

    def test_without_limits_nothing_is_called_available(self, tmp_path: Path) -> None:
        sample = read(on_v2(tmp_path, {"memory.max": "max\n", "memory.swap.max": "max\n"}))
        assert sample.memory is not None
        assert sample.memory.available is None
        assert sample.swap == Swap(4096, None)

    def test_nothing_is_negative_when_one_file_is_older_than_the_other(self, tmp_path: Path) -> None:
        sample = read(on_v2(tmp_path, {"memory.current": "1000", "memory.max": "0", "memory.swap.max": "100"}))
        assert sample.memory is not None
        assert (sample.memory.working_set, sample.memory.available) == (0, 0)
        assert sample.swap == Swap(4096, 0)

    def test_a_kernel_without_swap_psi_and_pids(self, tmp_path: Path) -> None:
        absent = ("memory.swap.current", "memory.swap.max", "cpu.pressure", "memory.pressure", "io.pressure", "pids.current")
        sample = read(on_v2(tmp_path, without=absent))
        assert sample.memory == MEMORY
        assert (sample.swap, sample.tasks, sample.cpu_pressure, sample.memory_pressure, sample.io_pressure) == (None,) * 5

    def test_psi_that_is_switched_off_at_boot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cgroup = on_v2(tmp_path)
        plain = files.read

        def refuse(path: str) -> bytes:
            if path.endswith(".pressure"):
                raise OSError(errno.EOPNOTSUPP, "not supported", path)
            return plain(path)

        monkeypatch.setattr(files, "read", refuse)
        sample = read(cgroup)
        assert sample.cpu_pressure is None
        assert sample.cpu == 1_500_000_000

    def test_controllers_that_are_not_delegated(self, tmp_path: Path) -> None:
        cgroup = on_v2(tmp_path, without=tuple(name for name in trees.V2_FILES if name != "cpu.stat"))
        sample = read(cgroup)
        assert sample == Sample(sample.time, sample.clock, cpu=1_500_000_000)


class TestV1:
    def test_all_of_it(self, tmp_path: Path) -> None:
        sample = read(on_v1(tmp_path))
        assert sample.cpu == 1_500_000_123
        assert sample.memory == MEMORY
        assert sample.swap == SWAP
        assert sample.tasks == 7
        assert (sample.cpu_pressure, sample.memory_pressure, sample.io_pressure) == (None, None, None)

    def test_without_limits_nothing_is_called_available(self, tmp_path: Path) -> None:
        unlimited = dict.fromkeys(("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), trees.V1_UNLIMITED)
        sample = read(on_v1(tmp_path, unlimited))
        assert sample.memory is not None
        assert sample.memory.available is None
        assert sample.swap == Swap(4096, None)

    def test_swap_that_isnt_accounted_for_is_no_swap(self, tmp_path: Path) -> None:
        cgroup = on_v1(tmp_path, {"memory.stat": "total_rss 1\ntotal_inactive_file 2\n"})
        assert read(cgroup).swap is None

    def test_paths_may_differ_by_hierarchy(self, tmp_path: Path) -> None:
        trees.v1(tmp_path, "/a")
        trees.v1(tmp_path, "/b", {"pids": {"pids.current": "9"}})
        cgroup = Cgroup.of_process({"cpu,cpuacct": "/a", "memory": "/a", "pids": "/b"}, trees.controllers(tmp_path))
        assert read(cgroup).tasks == 9

    def test_the_numbers_of_the_host_are_not_a_containers(self, tmp_path: Path) -> None:
        trees.v1(tmp_path, "/")
        trees.v1(tmp_path, PATH, {"memory": trees.V1_FILES["memory"]})
        cgroup = Cgroup.of_process({"cpu,cpuacct": "/", "memory": PATH, "pids": "/"}, trees.controllers(tmp_path))
        sample = read(cgroup)
        assert (sample.cpu, sample.memory, sample.tasks) == (None, MEMORY, None)

    def test_beside_a_v2_mount_the_v1_files_count(self, tmp_path: Path) -> None:
        trees.v2(tmp_path / "unified", "/shim", {"cpu.stat": "usage_usec 1\n"})
        trees.v1(tmp_path, PATH)
        cgroup = Cgroup.of_process({"cpu,cpuacct": PATH, "memory": PATH, "": "/shim"}, trees.controllers(tmp_path))
        assert read(cgroup).cpu == 1_500_000_123


@pytest.mark.parametrize("make", [on_v1, on_v2])
class TestGone:
    def test_before_it_is_read(self, make: Make, tmp_path: Path) -> None:
        cgroup = make(tmp_path)
        for directory in tmp_path.rglob("abc"):
            shutil.rmtree(directory)
        assert cgroup.read() is None

    def test_at_any_moment_while_it_is_read(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, left = files.read, 0

        def read_and_vanish(path: str) -> bytes:
            nonlocal left
            left -= 1
            if left == -1:
                for directory in list(tmp_path.rglob("abc")):
                    shutil.rmtree(directory)
            return plain(path)

        monkeypatch.setattr(files, "read", read_and_vanish)
        reads = 0
        while True:
            left = reads
            sample = make(tmp_path).read()
            if left >= 0:
                break
            assert sample is None, f"vanished before read {reads}"
            reads += 1
        assert reads >= 6
        assert sample is not None

    def test_between_open_and_read(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cgroup = make(tmp_path)

        def no_device(path: str) -> bytes:
            raise OSError(errno.ENODEV, "No such device")

        monkeypatch.setattr(files, "read", no_device)
        assert cgroup.read() is None

    def test_anything_else_is_an_error(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cgroup = make(tmp_path)

        def broken(path: str) -> bytes:
            raise OSError(errno.EIO, "I/O error", path)

        monkeypatch.setattr(files, "read", broken)
        with pytest.raises(OSError, match="I/O error"):
            cgroup.read()


OOM_FILES = {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "memory.events": "low 0\noom 5\noom_kill 2\n"}


def test_oom_kills_are_counted(tmp_path: Path) -> None:
    cgroup = on_v1(tmp_path / "v1", {"memory.oom_control": OOM_FILES["memory.oom_control"]})
    assert cgroup.oom_kills() == 2
    assert on_v2(tmp_path / "v2", {"memory.events": OOM_FILES["memory.events"]}).oom_kills() == 2


@pytest.mark.parametrize("make", [on_v1, on_v2])
def test_without_word_of_it_nobody_was_killed(make: Make, tmp_path: Path) -> None:
    cgroup = make(tmp_path)
    assert cgroup.oom_kills() == 0, "a kernel that doesn't count them"
    for directory in list(tmp_path.rglob("abc")):
        shutil.rmtree(directory)
    assert cgroup.oom_kills() is None, "nobody knows"


def test_a_pods_cgroup_is_at_the_same_path_everywhere(tmp_path: Path) -> None:
    trees.v1(tmp_path / "v1", POD)
    trees.v2(tmp_path / "v2", POD)
    for root, cpu in (("v1", 1_500_000_123), ("v2", 1_500_000_000)):
        sample = read(Cgroup.at(POD, trees.controllers(tmp_path / root)))
        assert (sample.cpu, sample.memory, sample.tasks) == (cpu, MEMORY, 7)


def test_nowhere_is_no_cgroup_at_all(tmp_path: Path) -> None:
    trees.v2(tmp_path, PATH)
    for membership in ({}, {"": "/"}, {"": "/../other"}, {"rdma": PATH}):
        sample = read(Cgroup.of_process(membership, trees.controllers(tmp_path)))
        assert sample == Sample(sample.time, sample.clock)


async def test_controllers_that_are_mounted_together_are_found_by_each_name(tmp_path: Path) -> None:
    trees.v1(tmp_path, PATH)
    assert await Cgroups(tmp_path).controllers() == {
        "cpu": tmp_path / "cpu,cpuacct",
        "cpuacct": tmp_path / "cpu,cpuacct",
        "memory": tmp_path / "memory",
        "pids": tmp_path / "pids",
    }
