"""Mounts against a recorder of system calls and a table in a file; the real kernel is in tests/e2e/test_linux_mounts.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent import metrics
from agent.errdefs import Busy
from agent.linux import libc
from agent.linux.mounts import Mount, Mounts


class Kernel:
    """A mount table, and system calls that change it. Paths in `busy` refuse that many times."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.mounted: list[str] = []
        self.busy: dict[str, int] = {}
        self.fail_flags = 0
        self.calls: list[str] = []
        (proc / "self/ns").mkdir(parents=True)
        os.symlink("mnt:[1]", proc / "self/ns/mnt")
        self._write()

    def mount(self, source: str, target: Path, fstype: str, flags: int, data: str = "") -> None:
        self.calls.append(f"mount {target} {flags:#x}")
        if self.fail_flags and flags & self.fail_flags:
            raise PermissionError(errno.EPERM, "no", str(target))
        if not flags & (libc.MS_REMOUNT | libc.MS_PRIVATE):
            self.mounted.append(str(target))
            self._write()

    def umount2(self, target: Path, flags: int) -> None:
        self.calls.append(f"umount {target} {flags:#x}")
        assert flags & libc.UMOUNT_NOFOLLOW
        name = str(target)
        if name not in self.mounted:
            raise OSError(errno.EINVAL, "not mounted", name)
        if not flags & libc.MNT_DETACH and self.busy.get(name, 0) > 0:
            self.busy[name] -= 1
            raise OSError(errno.EBUSY, "busy", name)
        index = len(self.mounted) - 1 - self.mounted[::-1].index(name)
        del self.mounted[index]
        self._write()

    def _write(self) -> None:
        rows = [f"{30 + number} 1 0:{number} / {path} rw - tmpfs t rw\n" for number, path in enumerate(self.mounted)]
        (self.proc / "self/mountinfo").write_text("".join(rows))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(libc, "mount", kernel.mount)
    monkeypatch.setattr(libc, "umount2", kernel.umount2)
    return kernel


async def test_unmount_all_goes_in_reverse_order_of_making_and_leaves_the_neighbours(kernel: Kernel) -> None:
    kernel.mounted = ["/x/rootfs", "/x/rootfs/proc", "/x/rootfs2", "/x/rootfs/proc/sys", "/x/rootfs"]
    kernel._write()
    await Mounts(kernel.proc).unmount_all(Path("/x/rootfs"))
    assert [call.split()[1] for call in kernel.calls] == ["/x/rootfs", "/x/rootfs/proc/sys", "/x/rootfs/proc", "/x/rootfs"]
    assert kernel.mounted == ["/x/rootfs2"]


async def test_unmount_all_tries_a_busy_mount_again_and_goes_on_with_the_others(kernel: Kernel) -> None:
    kernel.mounted = ["/x/a", "/x/b"]
    kernel._write()
    kernel.busy = {"/x/b": 2}
    await Mounts(kernel.proc).unmount_all(Path("/x"))
    assert kernel.mounted == []
    assert [call.split()[1] for call in kernel.calls] == ["/x/b", "/x/a", "/x/b", "/x/b"]


async def test_a_mount_that_stays_busy_is_reported_and_counted(kernel: Kernel) -> None:
    kernel.mounted = ["/x/a"]
    kernel._write()
    kernel.busy = {"/x/a": 1000}
    before = metrics.registry.get_sample_value("orlop_mount_busy_total") or 0
    with pytest.raises(Busy, match="can't unmount /x/a, it is held by nobody that is to be seen"):
        await Mounts(kernel.proc).unmount_all(Path("/x"))
    assert kernel.mounted == ["/x/a"]
    assert (metrics.registry.get_sample_value("orlop_mount_busy_total") or 0) > before


async def test_unmount_of_nothing_is_nothing_but_a_locked_mount_is_an_error(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Mounts(kernel.proc)
    await mounts.unmount(Path("/x/a"))
    kernel.mounted = ["/x/a"]
    kernel._write()

    def locked(target: Path, flags: int) -> None:
        raise OSError(errno.EINVAL, "locked", str(target))

    monkeypatch.setattr(libc, "umount2", locked)
    with pytest.raises(OSError, match="locked"):
        await mounts.unmount(Path("/x/a"))


async def test_a_busy_mount_can_be_detached(kernel: Kernel) -> None:
    mounts = Mounts(kernel.proc)
    kernel.mounted = ["/x/a"]
    kernel._write()
    kernel.busy = {"/x/a": 1000}
    with pytest.raises(Busy):
        await mounts.unmount(Path("/x/a"))
    await mounts.unmount(Path("/x/a"), detach=True)
    assert kernel.mounted == []


async def test_a_bind_whose_flags_are_refused_is_undone(kernel: Kernel) -> None:
    kernel.fail_flags = libc.MS_RDONLY
    with pytest.raises(PermissionError):
        await Mounts(kernel.proc).mount(Mount("bind", "/src", ("rbind", "ro")), Path("/x/a"))
    assert kernel.mounted == []


async def test_a_refused_remount_undoes_nothing_that_was_there(kernel: Kernel) -> None:
    kernel.mounted = ["/x/a"]
    kernel._write()
    kernel.fail_flags = libc.MS_PRIVATE
    with pytest.raises(PermissionError):
        await Mounts(kernel.proc).mount(Mount("", "", ("remount", "ro", "private")), Path("/x/a"))
    assert kernel.mounted == ["/x/a"]


async def test_a_mount_inside_of_a_rootfs_is_not_ours_to_make(kernel: Kernel) -> None:
    with pytest.raises(OSError, match="shim's to make"):
        await Mounts(kernel.proc).mount(Mount("tmpfs", "t", (), target="etc"), Path("/x/a"))
    assert kernel.calls == []


async def test_paths_with_links_on_the_way_are_found_in_the_table(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    kernel.mounted = [f"{tmp_path}/real/rootfs"]
    kernel._write()
    mounts = Mounts(kernel.proc)
    assert [str(mount.mount_point) for mount in await mounts.at_or_below(tmp_path / "link/rootfs")] == kernel.mounted
    assert len(await mounts.table()) == 1
