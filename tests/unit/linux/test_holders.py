"""Who holds a mount, from a /proc of files and links."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent import metrics
from agent.linux.holders import Holder, count_holders, find_holders

TARGET = Path("/run/orlop/c1/rootfs")
HOST = f"30 1 8:1 / / rw - ext4 disk rw\n40 30 0:57 / {TARGET} rw - overlay overlay rw\n"


class Proc:
    def __init__(self, root: Path, own_table: str = HOST) -> None:
        self.root = root
        (root / "self/ns").mkdir(parents=True)
        (root / "self/mountinfo").write_text(own_table)
        os.symlink("mnt:[1]", root / "self/ns/mnt")

    def process(
        self,
        pid: int,
        *,
        links: Mapping[str, str] | None = None,
        maps: str = "",
        namespace: int = 1,
        table: str = HOST,
        cmdline: bytes = b"sleep\x00100\0",
    ) -> None:
        place = self.root / str(pid)
        (place / "ns").mkdir(parents=True)
        (place / "fd").mkdir()
        (place / "cmdline").write_bytes(cmdline)
        (place / "comm").write_text("sleep\n")
        (place / "cgroup").write_text("2:memory:/pods/p1\n1:name=systemd:/\n0::/\n")
        (place / "mountinfo").write_text(table)
        (place / "maps").write_text(maps)
        os.symlink(f"mnt:[{namespace}]", place / "ns/mnt")
        for name, to in {"cwd": "/", "root": "/", "exe": "/bin/sleep", **(links or {})}.items():
            os.symlink(to, place / name)

    def holders(self, path: Path = TARGET) -> list[Holder]:
        found: list[Holder] = []
        find_holders(path, self.root, found)
        return found


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.mark.parametrize(
    ("links", "how", "path"),
    [
        ({"cwd": f"{TARGET}"}, "cwd", f"{TARGET}"),
        ({"root": f"{TARGET}/sub"}, "root", f"{TARGET}/sub"),
        ({"exe": f"{TARGET}/bin/sh (deleted)"}, "exe", f"{TARGET}/bin/sh (deleted)"),
        ({"fd/0": "socket:[1]", "fd/7": f"{TARGET}/var/log"}, "fd", f"{TARGET}/var/log"),
    ],
)
def test_a_link_on_the_mount_is_a_holder(proc: Proc, links: dict[str, str], how: str, path: str) -> None:
    proc.process(10, links={"cwd": f"{TARGET}2", "fd/1": "/dev/null"})
    proc.process(12, links=links)
    (holder,) = proc.holders()
    assert (holder.pid, holder.how, holder.path) == (12, how, path)
    assert holder.command == "sleep 100"
    assert holder.cgroup == "/pods/p1"


def test_a_kernel_thread_and_a_process_that_is_ending_are_passed_over(proc: Proc) -> None:
    (proc.root / "2").mkdir()
    proc.process(12, links={"cwd": str(TARGET)})
    assert [holder.pid for holder in proc.holders()] == [12]


@pytest.mark.field_fault("16")
def test_a_copy_in_another_mount_namespace_is_told_once_for_each_namespace(proc: Proc) -> None:
    inside = "90 80 0:57 / / rw - overlay overlay rw\n"
    proc.process(20, namespace=2, table=inside)
    proc.process(21, namespace=2, table=inside)
    proc.process(22, namespace=3, table="91 80 8:1 / / rw - ext4 disk rw\n")
    assert [(holder.pid, holder.how, holder.path) for holder in proc.holders()] == [(20, "mount namespace", "/")]


def test_of_a_bind_mount_only_the_same_tree_is_a_copy(tmp_path: Path) -> None:
    proc = Proc(tmp_path, "30 1 8:1 / / rw - ext4 disk rw\n41 30 8:1 /var/lib/v /run/v rw - ext4 disk rw\n")
    proc.process(20, namespace=2, table="90 80 8:1 / / rw - ext4 disk rw\n91 90 8:1 /var/lib/v2 /v2 rw - ext4 disk rw\n")
    proc.process(21, namespace=3, table="92 80 8:1 /var/lib/v/sub /data rw - ext4 disk rw\n")
    proc.process(22, maps="7f00-7f01 r-xp 0 08:01 9 /usr/lib/libc.so\n")
    assert [(holder.pid, holder.how, holder.path) for holder in proc.holders(Path("/run/v"))] == [(21, "mount namespace", "/data")]


def test_a_mapping_is_found_by_device_or_by_path(proc: Proc) -> None:
    proc.process(20, maps="7f00-7f01 r-xp 00000000 08:01 9    /usr/lib/libc.so\n7f02-7f03 r--p 00000000 00:39 12   /lib/with blank.so\n")
    proc.process(21, maps=f"7f00-7f01 rw-p 0 00:00 0 \n7f00-7f01 rw-p 0 00:00 0 [heap]\n7f02-7f03 r--p 0 00:21 12 {TARGET}/x\n")
    assert [(holder.pid, holder.how, holder.path) for holder in proc.holders()] == [
        (20, "map", "/lib/with blank.so"), (21, "map", f"{TARGET}/x"),
    ]  # fmt: skip


def test_when_nothing_is_mounted_here_a_namespace_with_a_mount_at_that_place_is_told(proc: Proc) -> None:
    proc.process(20, namespace=2, table="90 80 0:99 / /gone/sub rw - tmpfs t rw\n")
    assert [holder.pid for holder in proc.holders(Path("/gone"))] == [20]


def test_the_sentence_names_everything(proc: Proc) -> None:
    proc.process(12, links={"cwd": str(TARGET)}, cmdline=b"")
    (holder,) = proc.holders()
    assert str(holder) == f"process 12 (sleep) by its cwd {TARGET}, cgroup /pods/p1"


def test_one_that_opened_a_file_here_and_went_elsewhere_is_told_with_its_mount_namespace(proc: Proc) -> None:
    """As a VM's file server does: the file keeps our mount busy, though the process has a mount namespace of its own."""
    proc.process(20, links={"fd/3": f"{TARGET}/etc"}, namespace=2, table="91 80 8:1 / / rw - ext4 disk rw\n")
    (holder,) = proc.holders()
    assert (holder.pid, holder.how, holder.namespace) == (20, "fd", "mnt:[2]")
    assert str(holder) == f"process 20 (sleep 100) by its fd {TARGET}/etc, in mount namespace mnt:[2], cgroup /pods/p1"


@pytest.mark.parametrize(
    "cgroup",
    [
        "/kubepods/burstable/pod0b5ee0e4-0001-4a1c-8a2f-00000000000a/3f",
        "/kubepods.slice/kubepods-pod0b5ee0e4_0001_4a1c_8a2f_00000000000a.slice/cri-containerd-3f.scope",
    ],
    ids=["cgroupfs", "systemd"],
)
def test_the_pod_of_a_holder_is_named(proc: Proc, cgroup: str) -> None:
    proc.process(12, links={"cwd": str(TARGET)})
    (proc.root / "12/cgroup").write_text(f"0::{cgroup}\n")
    (holder,) = proc.holders()
    assert holder.pod == "0b5ee0e4-0001-4a1c-8a2f-00000000000a"
    assert "process 12 (sleep 100) of pod 0b5ee0e4-0001-4a1c-8a2f-00000000000a by its cwd" in str(holder)


def test_all_links_are_known_before_anything_is_looked_at_that_can_hang(proc: Proc) -> None:
    """/proc/PID/cmdline is read under the lock of the process's memory, as ps knows: one that is stuck must not hide the others."""
    for pid in (12, 13):
        proc.process(pid, links={"cwd": str(TARGET)})
    (proc.root / "12/cmdline").unlink()
    os.mkfifo(proc.root / "12/cmdline")  # its reader waits for a writer
    found: list[Holder] = []
    search = threading.Thread(target=find_holders, args=(TARGET, proc.root, found), daemon=True)
    search.start()
    writer = os.open(proc.root / "12/cmdline", os.O_WRONLY)  # until somebody reads it
    assert [(holder.pid, holder.command, holder.how) for holder in found] == [(12, "sleep", "cwd"), (13, "sleep", "cwd")]
    os.close(writer)
    search.join()
    assert [holder.command for holder in found] == ["sleep", "sleep 100"]


def test_holders_are_counted_by_kind(proc: Proc) -> None:
    proc.process(12, links={"cwd": str(TARGET), "fd/1": str(TARGET)})
    kinds = ("cwd", "fd", "mount", "unseen")
    before = {kind: metrics.mount_busy_holders.labels(kind)._value.get() for kind in kinds}
    count_holders(proc.holders(), below=True)
    count_holders([])
    counted = {kind: metrics.mount_busy_holders.labels(kind)._value.get() - before[kind] for kind in kinds}
    assert counted == {"cwd": 1, "fd": 1, "mount": 1, "unseen": 1}
