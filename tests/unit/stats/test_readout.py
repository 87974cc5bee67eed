"""All metrics of a cgroup, on file trees of v1 and v2: whole, in part, and while it goes away."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.linux import files
from agent.stats import Cgroup, Readout, Subject, Value, descriptors
from agent.stats.descriptors import Descriptor
from tests.unit.stats import trees

MIB = 1 << 20
PATH = "/kubepods/pod1/abc"
INIT, CHILD = 4001, 4002

V2 = {
    **trees.V2_FILES,
    "cpu.stat": "usage_usec 3500000\nuser_usec 2400000\nsystem_usec 1100000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2000001\n",
    "cpu.max": "20000 100000\n",
    "memory.stat": (
        "anon 31457280\nfile 62914560\nkernel 4096\nfile_mapped 8192\nactive_file 20\ninactive_file 20971520\npgfault 700\npgmajfault 3\n"
    ),
    "memory.peak": "157286400\n",
    "memory.events": "low 0\nhigh 1\nmax 5\noom 2\noom_kill 2\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=7000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6999999\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=512 dios=1\n",
    "pids.max": "100\n",
    "hugetlb.2MB.current": "2097152\n",
    "cgroup.procs": f"{INIT}\n{CHILD}\n",
}
V1 = {
    "cpuacct": {
        "cpuacct.usage": "3500000123\n",
        "cpuacct.stat": "user 240\nsystem 110\n",
        "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 2000000001\n",
        "cpu.cfs_quota_us": "20000\n",
    },
    "memory": {
        **trees.V1_FILES["memory"],
        "memory.stat": (
            "cache 1\nrss 2\nmapped_file 3\npgfault 600\npgmajfault 2\ntotal_cache 62914560\ntotal_rss 31457280\ntotal_mapped_file 8192\n"
            "total_active_file 20\ntotal_inactive_file 20971520\ntotal_swap 4096\ntotal_pgfault 700\ntotal_pgmajfault 3\n"
        ),
        "memory.max_usage_in_bytes": "157286400\n",
        "memory.kmem.usage_in_bytes": "4096\n",
        "memory.failcnt": "5\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "cgroup.procs": f"{INIT}\n{CHILD}\n",
    },
    "pids": {"pids.current": "7\n", "pids.max": "100\n"},
    "blkio": {
        "blkio.throttle.io_service_bytes_recursive": (
            "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 9\n8:0 Async 9\n8:0 Discard 512\n8:0 Total 12800\nTotal 12800\n"
        ),
        "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    },
    "hugetlb": {"hugetlb.2MB.usage_in_bytes": "2097152\n", "hugetlb.2MB.max_usage_in_bytes": "4194304\n"},
}
EXPECTED: dict[Descriptor, dict[tuple[str, ...], int]] = {
    descriptors.CPU_USAGE: {("total",): 3},
    descriptors.CPU_USER: {(): 2},
    descriptors.CPU_SYSTEM: {(): 1},
    descriptors.CFS_PERIODS: {(): 9},
    descriptors.CFS_THROTTLED_PERIODS: {(): 4},
    descriptors.CFS_THROTTLED: {(): 2},
    descriptors.MEMORY_USAGE: {(): 100 * MIB},
    descriptors.MEMORY_MAX_USAGE: {(): 150 * MIB},
    descriptors.MEMORY_WORKING_SET: {(): 80 * MIB},
    descriptors.MEMORY_RSS: {(): 30 * MIB},
    descriptors.MEMORY_CACHE: {(): 60 * MIB},
    descriptors.MEMORY_MAPPED_FILE: {(): 8192},
    descriptors.MEMORY_ACTIVE_FILE: {(): 20},
    descriptors.MEMORY_INACTIVE_FILE: {(): 20 * MIB},
    descriptors.MEMORY_KERNEL: {(): 4096},
    descriptors.MEMORY_SWAP: {(): 4096},
    descriptors.MEMORY_FAILCNT: {(): 5},
    descriptors.OOM_EVENTS: {(): 2},
    descriptors.HUGETLB_USAGE: {("2MB",): 2 * MIB},
    descriptors.FS_READS: {("/dev/sda",): 1},
    descriptors.FS_READ_BYTES: {("/dev/sda",): 4096},
    descriptors.FS_WRITES: {("/dev/sda",): 2},
    descriptors.FS_WRITTEN_BYTES: {("/dev/sda",): 8192},
    descriptors.BLKIO_USAGE: {
        ("/dev/sda", "8", "0", "Read"): 4096,
        ("/dev/sda", "8", "0", "Write"): 8192,
        ("/dev/sda", "8", "0", "Discard"): 512,
    },
    descriptors.PROCESSES: {(): 2},
    descriptors.THREADS: {(): 7},
    descriptors.THREADS_MAX: {(): 100},
    descriptors.FILE_DESCRIPTORS: {(): 5},
    descriptors.SOCKETS: {(): 2},
    descriptors.ULIMITS_SOFT: {("max_open_files",): 1024},
}
ON_V2: dict[Descriptor, dict[tuple[str, ...], int]] = {
    descriptors.MEMORY_FAILURES: {
        ("pgfault", "container"): 700,
        ("pgmajfault", "container"): 3,
        ("pgfault", "hierarchy"): 700,
        ("pgmajfault", "hierarchy"): 3,
    },
    descriptors.PRESSURE_CPU_WAITING: {(): 0},
    descriptors.PRESSURE_CPU_STALLED: {(): 0},
    descriptors.PRESSURE_MEMORY_WAITING: {(): 7},
    descriptors.PRESSURE_MEMORY_STALLED: {(): 6},
    descriptors.PRESSURE_IO_WAITING: {(): 0},
    descriptors.PRESSURE_IO_STALLED: {(): 0},
}
ON_V1: dict[Descriptor, dict[tuple[str, ...], int]] = {
    descriptors.MEMORY_FAILURES: {
        ("pgfault", "container"): 600,
        ("pgmajfault", "container"): 2,
        ("pgfault", "hierarchy"): 700,
        ("pgmajfault", "hierarchy"): 3,
    },
    descriptors.HUGETLB_MAX_USAGE: {("2MB",): 4 * MIB},
}


class Host:
    """A node in a directory, with one cgroup, two processes, a disk, and huge pages of 2 MiB."""

    def __init__(self, root: Path) -> None:
        self.cgroups, self.proc, self.sys = root / "cgroup", root / "proc", root / "sys"
        self.cgroups.mkdir(parents=True)
        self.process(INIT, {"0": "/dev/null", "3": "socket:[17]", "4": "pipe:[5]"})
        self.process(CHILD, {"0": "/dev/null", "1": "socket:[18]"})
        (self.sys / "kernel/mm/hugepages/hugepages-2048kB").mkdir(parents=True)
        (self.sys / "dev/block").mkdir(parents=True)
        (self.sys / "dev/block/8:0").symlink_to("../../devices/pci0/block/sda")
        self.readout = Readout(self.proc, self.sys)
        self.subject = Subject(Cgroup({}), 0)

    def put_into(self, membership: dict[str, str]) -> Host:
        self.subject = Subject(Cgroup.of_process(membership, trees.controllers(self.cgroups)), INIT)
        return self

    def process(self, pid: int, descriptors: dict[str, str]) -> None:
        directory = self.proc / str(pid) / "fd"
        directory.mkdir(parents=True)
        for name, target in descriptors.items():
            (directory / name).symlink_to(target)
        limits = "Limit                     Soft Limit           Hard Limit           Units     \n"
        limits += "Max processes             unlimited            unlimited            processes \n"
        limits += "Max open files            1024                 4096                 files     \n"
        (self.proc / str(pid) / "limits").write_text(limits)

    def directories(self) -> list[Path]:
        return list(self.cgroups.rglob("abc"))

    def read(self) -> dict[Descriptor, dict[tuple[str, ...], int]]:
        values = self.readout.read(self.subject)
        assert values is not None
        return by_metric(values)


def by_metric(values: list[Value]) -> dict[Descriptor, dict[tuple[str, ...], int]]:
    found: dict[Descriptor, dict[tuple[str, ...], int]] = {}
    for metric, number, labels in values:
        assert len(labels) == len(metric.labels)
        assert labels not in found.setdefault(metric, {}), f"{metric.name} twice"
        found[metric][labels] = number
    return found


def on_v2(root: Path) -> Host:
    host = Host(root)
    trees.v2(host.cgroups, PATH, V2)
    return host.put_into({"": PATH})


def on_v1(root: Path) -> Host:
    host = Host(root)
    trees.v1(host.cgroups, PATH, V1)
    return host.put_into(dict.fromkeys(("cpu,cpuacct", "memory", "pids", "blkio", "hugetlb"), PATH))


def test_v2(tmp_path: Path) -> None:
    assert on_v2(tmp_path).read() == {**EXPECTED, **ON_V2}


def test_v1(tmp_path: Path) -> None:
    assert on_v1(tmp_path).read() == {**EXPECTED, **ON_V1}


def test_what_the_node_doesnt_count_is_absent(tmp_path: Path) -> None:
    """A kernel without PSI, swap, huge pages and a word for what it uses itself; no limits; controllers that aren't delegated."""
    host = on_v2(tmp_path)
    shutil.rmtree(host.sys / "kernel")
    [directory] = host.directories()
    for name in (
        "cpu.pressure",
        "memory.pressure",
        "io.pressure",
        "memory.swap.current",
        "memory.peak",
        "pids.current",
        "pids.max",
        "io.stat",
    ):
        (directory / name).unlink()
    (directory / "memory.stat").write_text("anon 1\nfile 2\n")
    (directory / "cpu.max").write_text("max 100000\n")
    found = host.read()
    assert {metric.name.removeprefix("container_") for metric in found} == {
        "cpu_usage_seconds_total", "cpu_user_seconds_total", "cpu_system_seconds_total", "memory_usage_bytes", "memory_working_set_bytes",
        "memory_rss", "memory_cache", "memory_failcnt", "oom_events_total", "processes", "file_descriptors", "sockets", "ulimits_soft",
    }  # fmt: skip


def test_without_memory_and_swap_accounting_on_v1(tmp_path: Path) -> None:
    host = on_v1(tmp_path)
    (host.cgroups / "memory" / PATH.strip("/") / "memory.stat").write_text("total_rss 5\n")
    (host.cgroups / "cpu,cpuacct" / PATH.strip("/") / "cpu.cfs_quota_us").write_text("-1\n")
    found = host.read()
    assert found[descriptors.MEMORY_RSS] == {(): 5}
    for metric in (descriptors.MEMORY_SWAP, descriptors.MEMORY_CACHE, descriptors.MEMORY_FAILURES, descriptors.CFS_PERIODS):
        assert metric not in found


def test_no_limit_of_threads_is_0(tmp_path: Path) -> None:
    host = on_v2(tmp_path)
    (host.directories()[0] / "pids.max").write_text("max\n")
    assert host.read()[descriptors.THREADS_MAX] == {(): 0}


def test_processes_of_cgroups_below_count(tmp_path: Path) -> None:
    """systemd in a container moves itself and what it starts into cgroups below."""
    host = on_v2(tmp_path)
    [directory] = host.directories()
    (directory / "cgroup.procs").write_text("")
    trees.fill(directory / "init.scope", {"cgroup.procs": f"{INIT}\n"})
    trees.fill(directory / "system.slice/a.service", {"cgroup.procs": f"{CHILD}\n"})
    (directory / "system.slice/gone.service").mkdir()
    found = host.read()
    assert found[descriptors.PROCESSES] == {(): 2}
    assert found[descriptors.FILE_DESCRIPTORS] == {(): 5}


def test_processes_that_end_meanwhile_dont_count(tmp_path: Path) -> None:
    host = on_v2(tmp_path)
    shutil.rmtree(host.proc / str(INIT))
    found = host.read()
    assert found[descriptors.FILE_DESCRIPTORS] == {(): 2}
    assert found[descriptors.SOCKETS] == {(): 1}
    assert descriptors.ULIMITS_SOFT not in found


def test_a_first_process_that_is_a_strangers_by_now(tmp_path: Path) -> None:
    host = on_v2(tmp_path)
    host.process(77, {})
    host.subject = Subject(host.subject.cgroup, 77)
    assert descriptors.ULIMITS_SOFT not in host.read()


def test_descriptors_that_we_may_not_look_at_are_not_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = on_v2(tmp_path)
    plain = os.open

    def forbidden(path: str, *args: int) -> int:
        if path.endswith("/fd"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return plain(path, *args)

    monkeypatch.setattr(os, "open", forbidden)
    found = host.read()
    assert found[descriptors.PROCESSES] == {(): 2}
    assert descriptors.FILE_DESCRIPTORS not in found
    assert descriptors.SOCKETS not in found


def test_a_limit_of_open_files_that_is_none(tmp_path: Path) -> None:
    host = on_v2(tmp_path)
    (host.proc / str(INIT) / "limits").write_text("Max open files            unlimited            unlimited            files\n")
    assert descriptors.ULIMITS_SOFT not in host.read()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("8:0 \n", {}),
        ("9:1 rbytes=5\n", {("9:1",): 5}),
        ("8:16 8:0 rbytes=5\n", {("/dev/sda",): 5}),  # a kernel that forgets the end of an idle device's line
        ("8:0 rbytes=x wbytes= rbytes=5\n", {("/dev/sda",): 5}),
    ],
)
def test_io_of_devices(tmp_path: Path, text: str, expected: dict[tuple[str, ...], int]) -> None:
    host = on_v2(tmp_path)
    (host.directories()[0] / "io.stat").write_text(text)
    assert host.read().get(descriptors.FS_READ_BYTES, {}) == expected


@pytest.mark.parametrize(("name", "size"), [("hugepages-64kB", "64KB"), ("hugepages-2048kB", "2MB"), ("hugepages-1048576kB", "1GB")])
def test_sizes_of_huge_pages_as_cgroup_files_name_them(tmp_path: Path, name: str, size: str) -> None:
    host = on_v2(tmp_path)
    (host.sys / "kernel/mm/hugepages" / name).mkdir(exist_ok=True)
    (host.directories()[0] / f"hugetlb.{size}.current").write_text("4096\n")
    assert host.read()[descriptors.HUGETLB_USAGE][(size,)] == 4096


def test_nowhere_is_no_cgroup_at_all(tmp_path: Path) -> None:
    assert Readout(tmp_path, tmp_path).read(Subject(Cgroup({}), 1)) == []


@pytest.mark.parametrize("make", [on_v1, on_v2])
class TestGone:
    def test_at_any_moment_while_it_is_read(self, make: Callable[[Path], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, left = files.read, 0
        host = make(tmp_path / "0")

        def read_and_vanish(path: str) -> bytes:
            nonlocal left
            left -= path.startswith(str(host.cgroups))
            if left == -1:
                for directory in host.directories():
                    shutil.rmtree(directory)
            return plain(path)

        monkeypatch.setattr(files, "read", read_and_vanish)
        reads = 0
        while True:
            left = reads
            values = host.readout.read(host.subject)
            if left >= 0:
                break
            assert values is None, f"vanished before read {reads}"
            reads += 1
            host = make(tmp_path / str(reads))
        assert reads > 10
        assert values is not None

    def test_between_open_and_read(self, make: Callable[[Path], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        host = make(tmp_path)

        def no_device(path: str) -> bytes:
            raise OSError(errno.ENODEV, "No such device")

        monkeypatch.setattr(files, "read", no_device)
        assert host.readout.read(host.subject) is None

    def test_anything_else_is_an_error(self, make: Callable[[Path], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        host = make(tmp_path)

        def broken(path: str) -> bytes:
            raise OSError(errno.EIO, "I/O error", path)

        monkeypatch.setattr(files, "read", broken)
        with pytest.raises(OSError, match="I/O error"):
            host.readout.read(host.subject)


class TestFilesystem:
    def test_size_and_inodes(self, tmp_path: Path) -> None:
        found = by_metric(Readout(sys=tmp_path).filesystem(str(tmp_path)))
        status = os.statvfs(tmp_path)
        device = os.stat(tmp_path).st_dev
        label = (f"{os.major(device)}:{os.minor(device)}",)
        assert found[descriptors.FS_LIMIT] == {label: status.f_blocks * status.f_frsize}
        assert found[descriptors.FS_INODES] == {label: status.f_files}
        assert found[descriptors.FS_INODES_FREE].keys() == {label}

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Readout().filesystem(str(tmp_path / "nowhere"))
