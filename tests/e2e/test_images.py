"""Images from an archive to a process in their rootfs, and an agent that is killed in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from agent.content import ContentStore
from agent.errdefs import ResourceExhausted, Unavailable
from agent.images.service import ImageService
from agent.linux.mounts import Mount, Mounts
from agent.linux.processes import Command, Processes
from agent.registry import RegistryClient
from agent.snapshots.snapshotter import Snapshotter
from agent.store.kinds import Kind
from agent.store.release import Releases
from agent.store.store import Store
from tests.images import busybox_image, make_docker_archive, make_oci_layout

pytestmark = pytest.mark.e2e

POINTS = (
    "store.intend.commit",
    "images.import.intend",
    "content.ingest.create",
    "content.ingest.rename",
    "snapshots.unpack.worker",
    "snapshots.commit.rename",
    "images.import.put",
    "store.put.commit",
    "content.delete.unlink",
    "store.release.act",
    "store.release.drop",
)


class ImageNode:
    """The image service with all that it stands on, under one root."""

    async def __aenter__(self) -> ImageNode:
        return self

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stack = AsyncExitStack()

    async def start(self) -> ImageService:
        store = await Store.open(self.root / "run", self.root / "lib")
        self.stack.push_async_callback(store.close)
        self.ledger = store.ledger
        releases = Releases(store.ledger, time.time)
        self.stack.push_async_callback(releases.stop, 5)
        processes = Processes()
        self.stack.push_async_callback(processes.stop)
        self.snapshots = Snapshotter(self.root / "lib/snapshots", processes)
        images = ImageService(
            ContentStore(self.root / "lib/content"),
            self.snapshots,
            store.disk_records("images"),
            store.ledger,
            releases,
            RegistryClient(self.root / "certs.d", {}),
        )
        releases.register(Kind.INGEST, images.release_ingest)
        releases.register(Kind.LAYER_UNPACK, images.release_unpack)
        releases.register(Kind.SNAPSHOT, images.release_snapshot)
        await images.open()
        self.stack.push_async_callback(images.close, 30)
        await releases.release(store.ledger.all())
        return images

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    def left(self) -> list[str]:
        names = (
            "content/ingest",
            "content/blobs/sha256",
            *(f"snapshots/{name}" for name in ("unpack", "layers", "l", "trash", "containers")),
        )
        return [str(path.relative_to(self.root)) for name in names for path in (self.root / "lib" / name).iterdir()]


async def test_a_process_runs_in_an_imported_rootfs(tmp_path: Path) -> None:
    async with ImageNode(tmp_path) as node:
        images = await node.start()
        (image,) = await images.import_archive(busybox_image(tmp_path / "busybox.tar", "busybox:test"))
        (mount,) = await images.prepare_rootfs(image.id, "c1")
        rootfs = tmp_path / "rootfs"
        rootfs.mkdir()
        await Mounts().mount(mount, rootfs)
        try:
            script = "echo $(id -un); touch /tmp/x; stat -c %a /tmp"
            said = await Processes().run(Command(("/usr/sbin/chroot", str(rootfs), "/bin/sh", "-c", script), tmp_path, {}))
        finally:
            await Mounts().unmount(rootfs)
        assert said.stdout == b"root\n1777\n", said.stderr
        await node.snapshots.remove("c1")
        await images.remove("busybox:test")
        assert node.left() == []


async def child(root: str, archive: str, verb: str) -> None:
    """What the killed agent does: an import, or the removal of what it imported before."""
    async with ImageNode(Path(root)) as node:
        images = await node.start()
        if verb == "remove":
            await images.remove("app:1")
        else:
            await images.import_archive(Path(archive))


KILLED = 128 + signal.SIGKILL


def crash(root: Path, archive: Path, verb: str, failpoints: str) -> int:
    """Run `child`; its exit status. Its workers die with it, as the children of a daemon do with its cgroup (decisions.md 17)."""
    code = f"import asyncio; from tests.e2e.test_images import child; asyncio.run(child({str(root)!r}, {str(archive)!r}, {verb!r}))"
    # A pid namespace ends with its first process, the shell: the agent itself could not kill itself as such.
    namespace = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh")
    env = {**os.environ, "ORLOP_FAILPOINTS": failpoints}
    done = subprocess.run([*namespace, sys.executable, "-c", code], check=False, env=env, capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 2])
async def test_kill_9_in_the_middle_of_an_import(tmp_path: Path, point: str, nth: int) -> None:
    archive = make_oci_layout(tmp_path / "a.tar", {"app:1": [{"a": b""}, {"b": b""}]})
    code = await asyncio.to_thread(crash, tmp_path, archive, "import", f"{point}={nth}*crash")
    async with ImageNode(tmp_path) as node:
        images = await node.start()
        await images.close(30)
        assert node.ledger.all() == []
        if images.images():  # it was killed after its record was written, or that point is passed only once
            assert code == 0 or point in ("content.delete.unlink", "store.put.commit")
        else:
            assert code == KILLED
            assert node.left() == []
        (image,) = await images.import_archive(archive)
        await images.remove(image.id)
        await images.close(30)
        assert node.left() == []


@pytest.mark.parametrize("point", ["images.remove.record", "store.delete.commit", "snapshots.delete_layer.rename", "content.delete.unlink"])
async def test_kill_9_in_the_middle_of_a_removal(tmp_path: Path, point: str) -> None:
    archive = make_docker_archive(tmp_path / "a.tar", {"app:1": [{"a": b""}, {"b": b""}]})
    assert crash(tmp_path, archive, "import", "") == 0
    assert await asyncio.to_thread(crash, tmp_path, archive, "remove", f"{point}=crash") == KILLED
    async with ImageNode(tmp_path) as node:
        images = await node.start()
        await images.close(30)
        gone = point in ("snapshots.delete_layer.rename", "content.delete.unlink")  # the record goes before the files
        assert [image.tags for image in images.images()] == ([] if gone else [("docker.io/library/app:1",)])
        await images.remove("app:1")
        assert node.left() == []


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.field_fault("25")
async def test_a_full_disk_refuses_imports_and_nothing_else(tmp_path: Path) -> None:
    """Deleting needs no space, neither for files nor in the database; what was tried and failed leaves none taken."""
    small = make_oci_layout(tmp_path / "small", {"small:1": [{"a": bytes(1 << 20)}]})
    large = make_oci_layout(tmp_path / "large", {"large:1": [{"b": os.urandom(4 << 20), "c": bytes(12 << 20)}]})
    disk = tmp_path / "lib"
    disk.mkdir()
    await Mounts().mount(Mount("tmpfs", "tmpfs", ("size=12m",)), disk)
    try:
        async with ImageNode(tmp_path) as node:
            images = await node.start()
            (image,) = await images.import_archive(small)
            before = node.left()
            with pytest.raises(ResourceExhausted, match="disk"):
                await images.import_archive(large)
            assert node.left() == before
            assert node.ledger.all() == []
            fill(disk / "filler")
            with pytest.raises((ResourceExhausted, Unavailable)):
                await images.import_archive(large)
            assert node.left() == before
            await images.remove(image.id)
            assert images.images() == []
            assert node.left() == []
            (disk / "filler").unlink()
            await images.import_archive(small)
    finally:
        await Mounts().unmount(disk)
