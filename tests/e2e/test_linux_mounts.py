"""Mounts of the real kernel: what keeps one busy is named, a dead file system is never asked, odd names are found."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errdefs import Busy
from agent.linux.mounts import Mount, Mounts
from agent.linux.processes import Command, Processes

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for mounts; what a failed test leaves there is detached."""
    place = tmp_path_factory.mktemp("mounts")
    yield place
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(str(place)):
            subprocess.run(["umount", "--lazy", line.split()[4]], check=True)


@pytest.fixture
def target(place: Path) -> Path:
    target = place / "rootfs"
    target.mkdir()
    return target


HOLDERS = {
    "cwd": "import os, sys; os.chdir(sys.argv[1])",
    "root": "import os, sys; os.chroot(sys.argv[1])",
    "fd": "import sys; file = open(sys.argv[1] + '/open', 'w')",
    "map": "import mmap, sys; file = open(sys.argv[1] + '/data', 'r+b'); view = mmap.mmap(file.fileno(), 4); file.close()",
}


@pytest.mark.field_fault("16")
@pytest.mark.parametrize("how", [*HOLDERS, "exe", "mount namespace"])
async def test_a_busy_mount_names_its_holder_and_can_be_unmounted_once_that_is_gone(target: Path, how: str) -> None:
    mounts, processes = Mounts(), Processes()
    await mounts.mount(Mount("tmpfs", "tmpfs", ("mode=755",)), target)
    (target / "data").write_bytes(b"data")
    shutil.copy("/bin/sleep", target / "sleep")
    if how == "exe":
        argv: tuple[str, ...] = (str(target / "sleep"), "1000")
    elif how == "mount namespace":
        argv = ("unshare", "--mount", "--propagation", "private", "sleep", "1000")
    else:  # mapped file: not opened for good, since a descriptor of it would be told as well
        argv = (sys.executable, "-c", f"import signal; {HOLDERS[how]}; signal.pause()", str(target))
    with await processes.start(Command(argv, Path("/"), ENV)) as holder:
        while how not in {found.how for found in await mounts.holders(target) if found.pid == holder.pid}:
            await asyncio.sleep(0.02)
        (found,) = [found for found in await mounts.holders(target) if found.how == how]
        assert found.pid == holder.pid
        assert found.command.startswith("sleep 1000" if how == "mount namespace" else argv[0])
        if how == "mount namespace":  # a private copy: it keeps the file system alive, not the mount busy
            await mounts.unmount_all(target)
            assert [left.how for left in await mounts.holders(target)] == ["mount namespace"]
        else:
            with pytest.raises(Busy, match=rf"can't unmount {target}, it is held by .*process {holder.pid} \(.*\) by its {how} "):
                await mounts.unmount_all(target)
            assert await mounts.at_or_below(target), "it stays"
        holder.kill(signal.SIGKILL)
        await holder.wait()
    await mounts.unmount_all(target)
    assert await mounts.at_or_below(target) == []
    await processes.stop()


async def test_a_mount_below_is_a_reason_too(target: Path) -> None:
    mounts = Mounts()
    await mounts.mount(Mount("tmpfs", "tmpfs", ()), target)
    (target / "proc").mkdir()
    await mounts.mount(Mount("proc", "proc", ()), target / "proc")
    with pytest.raises(Busy, match=f"held by the mount {target}/proc below it. It stays mounted"):
        await mounts.unmount(target)
    await mounts.unmount(target, detach=True)
    assert await mounts.at_or_below(target) == []


async def test_stacked_nested_and_oddly_named_mounts_go_at_once(place: Path) -> None:
    mounts = Mounts()
    target = place / "a b\n\\040\té\udcff"
    target.mkdir()
    for size in ("1m", "2m"):
        await mounts.mount(Mount("tmpfs", "odd \\ source\n", (f"size={size}",)), target)
    (target / "sub").mkdir()
    await mounts.bind(target, target / "sub")
    neighbour = place / "a b\n\\040\té\udcff2"
    neighbour.mkdir()
    await mounts.mount(Mount("tmpfs", "tmpfs", ()), neighbour)

    found = await mounts.at_or_below(target)
    assert [mount.mount_point for mount in found] == [target, target, target / "sub"]
    assert found[0].source == "odd \\ source\n"
    await mounts.unmount_all(target)
    assert [mount.mount_point for mount in await mounts.at_or_below(place)] == [neighbour]
    await mounts.unmount(neighbour)
    await mounts.unmount(neighbour)


async def test_all_options_of_a_bind_hold(target: Path, place: Path) -> None:
    mounts = Mounts()
    source = place / "source"
    source.mkdir()
    await mounts.mount(Mount("bind", str(source), ("rbind", "ro", "nosuid", "noexec", "rprivate")), target)
    (mount,) = await mounts.at_or_below(target)
    assert {"ro", "nosuid", "noexec"} <= set(mount.options.split(","))
    assert mount.optional == ""
    with pytest.raises(OSError, match="Read-only") as refused:
        (target / "x").touch()
    assert refused.value.errno == errno.EROFS
    (source / "x").touch()
    await mounts.unmount(target)
    await mounts.mount(Mount("bind", str(source), ("rbind", "rslave")), target)
    assert "master:" in (await mounts.at_or_below(target))[0].optional
    await mounts.unmount(target)


async def test_a_failed_mount_says_what_and_where_and_leaves_nothing(target: Path) -> None:
    mounts = Mounts()
    with pytest.raises(OSError, match="mount overlay overlay") as failed:
        await mounts.mount(Mount("overlay", "overlay", (f"lowerdir={target}/none",)), target)
    assert failed.value.filename == str(target)
    assert await mounts.at_or_below(target) == []


async def test_a_link_is_not_followed_to_somebody_elses_mount(target: Path, place: Path) -> None:
    mounts = Mounts()
    await mounts.mount(Mount("tmpfs", "tmpfs", ()), target)
    link = place / "link"
    link.symlink_to(target)
    await mounts.unmount(link)
    await mounts.unmount_all(link)
    assert await mounts.at_or_below(target)
    await mounts.unmount(target)


@pytest.mark.field_fault("20")
async def test_a_dead_file_system_is_never_asked(target: Path) -> None:
    """A FUSE file system whose server never answers stands for NFS without its server: any look at the path hangs."""
    mounts = Mounts()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        await mounts.mount(Mount("fuse", "dead", (f"fd={server}", "rootmode=40000", "user_id=0", "group_id=0")), target)
        user = os.open(target, os.O_PATH | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(8):
                assert [holder.how for holder in await mounts.holders(target)] == ["fd"]
                with pytest.raises(Busy, match=f"process {os.getpid()}"):
                    await mounts.unmount_all(target)
        finally:
            os.close(user)
        async with asyncio.timeout(8):
            await mounts.unmount_all(target)
            assert await mounts.at_or_below(target) == []
    finally:
        os.close(server)  # whoever hangs on it gets ENOTCONN


@pytest.mark.field_fault("20")
async def test_a_mount_below_a_dead_file_system_is_told_and_not_looked_up(target: Path) -> None:
    """The dead one is over it, so that every look at its path would hang: its table entry says all that is needed."""
    mounts = Mounts()
    below = target / "below"
    below.mkdir()
    await mounts.mount(Mount("tmpfs", "tmpfs", ()), below)
    user = os.open(below, os.O_PATH | os.O_CLOEXEC)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        await mounts.mount(Mount("fuse", "dead", (f"fd={server}", "rootmode=40000", "user_id=0", "group_id=0")), target)
        dead = os.open(target, os.O_PATH | os.O_CLOEXEC)
        async with asyncio.timeout(4):  # less than the budget for holders
            with pytest.raises(Busy, match=rf"can't unmount {target}, it is held by process {os.getpid()} "):
                await mounts.unmount_all(target)
            assert [mount.mount_point for mount in await mounts.at_or_below(target)] == [below, target]
        os.close(dead)
        async with asyncio.timeout(4):
            with pytest.raises(Busy, match=rf"can't unmount {below}, it is held by process {os.getpid()} "):
                await mounts.unmount_all(target)
    finally:
        os.close(server)
        os.close(user)
    await mounts.unmount_all(target)


async def test_one_in_another_mount_namespace_that_has_a_file_of_ours_open(target: Path) -> None:
    """It keeps our mount busy, unlike its copy of the mount; as a VM's file server does."""
    mounts, processes = Mounts(), Processes()
    await mounts.mount(Mount("tmpfs", "tmpfs", ()), target)
    code = "import ctypes, os, signal, sys; os.open(sys.argv[1], os.O_RDONLY); ctypes.CDLL(None).unshare(0x20000); signal.pause()"
    with await processes.start(Command((sys.executable, "-c", code, str(target)), Path("/"), ENV)) as holder:
        while not any(found.namespace for found in await mounts.holders(target)):
            await asyncio.sleep(0.02)
        with pytest.raises(Busy, match=rf"process {holder.pid} \(.* by its fd {target}, in mount namespace mnt:\[\d+\], cgroup "):
            await mounts.unmount_all(target)
        holder.kill(signal.SIGKILL)
        await holder.wait()
    await mounts.unmount_all(target)
    await processes.stop()
