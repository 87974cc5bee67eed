"""Layers through the real worker, and overlay mounts by the real kernel: what takes root."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.errdefs import DataLoss, DeadlineExceeded, InvalidArgument, OrlopError, ResourceExhausted
from agent.linux.mounts import Mount, Mounts
from agent.linux.processes import Command, Completed, Processes
from agent.snapshots.apply import Limits
from agent.snapshots.layers import Layer
from agent.snapshots.snapshotter import Snapshotter
from tests.images import Entries, Node, digest, directory, gzipped, hard_link, layer_tar, symlink, whiteout

pytestmark = pytest.mark.e2e

# A capability of a file: version 2, CAP_NET_RAW permitted and effective (linux/capability.h, struct vfs_cap_data).
NET_RAW = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)


class UnpackNode:
    """A snapshotter with real processes under a root of the test's own."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.root = root / "s"
        self.blob = root / "blob"
        self.processes = Processes()
        self.snapshots = Snapshotter(self.root, self.processes, limits=limits)
        self.keys = 0

    async def add(self, entries: Entries | bytes, parent: str = "", diff_id: str = "", blob: bytes | None = None) -> Layer:
        """Unpack and commit; on failure, discard and see that nothing is left."""
        tar = entries if isinstance(entries, bytes) else layer_tar(entries)
        self.blob.write_bytes(gzipped(tar) if blob is None else blob)
        self.keys += 1
        try:
            unpacked = await self.snapshots.unpack(f"u{self.keys}", self.blob, diff_id or digest(tar))
            return await self.snapshots.commit(unpacked, parent)
        finally:
            await self.snapshots.discard(f"u{self.keys}")
            assert list((self.root / "unpack").iterdir()) == []

    def fs(self, layer: Layer) -> Path:
        return self.root / "l" / layer.short

    @asynccontextmanager
    async def mounted(self, mounts: list[Mount]) -> AsyncIterator[Path]:
        target = self.root.parent / "rootfs"
        target.mkdir(exist_ok=True)
        (mount,) = mounts
        await Mounts().mount(mount, target)
        try:
            yield target
        finally:
            await Mounts().unmount(target)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[UnpackNode]:
    node = UnpackNode(tmp_path)
    await node.snapshots.open(())
    yield node
    await node.snapshots.close(5)
    await node.processes.stop()


async def test_owners_modes_devices_and_attributes(node: UnpackNode) -> None:
    layer = await node.add(
        {
            "./": directory(0o755, uid=0, gid=0),
            "home/": directory(0o2750, uid=1000, gid=2000),
            "home/file": Node(data=b"x", mode=0o6755, uid=4_000_000_000, gid=7),
            "home/link": symlink("/etc/shadow", uid=5, gid=6),
            "home/inherits": Node(data=b"", uid=1, gid=1),
            "ping": Node(data=b"ELF", mode=0o755, uid=12, xattrs={"security.capability": NET_RAW, "user.note": b"\xff\n\0"}),
            "dev/null": Node(tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
            "dev/sda": Node(tarfile.BLKTYPE, mode=0o660, gid=6, device=(8, 0)),
            "dev/pipe": Node(tarfile.FIFOTYPE, mode=0o600, uid=9),
        }
    )
    root = node.fs(layer)

    def status(name: str) -> tuple[str, int, int]:
        found = (root / name).lstat()
        return stat.filemode(found.st_mode), found.st_uid, found.st_gid

    assert status("home") == ("drwxr-s---", 1000, 2000)
    assert status("home/file") == ("-rwsr-sr-x", 4_000_000_000, 7)
    assert status("home/link") == ("lrwxrwxrwx", 5, 6)
    assert status("home/inherits") == ("-rw-r--r--", 1, 1)
    assert status("dev") == ("drwxr-xr-x", 0, 0)  # has no entry; the worker is not root, but what it makes is root's
    assert status("dev/null") == ("crw-rw-rw-", 0, 0)
    assert status("dev/sda") == ("brw-rw----", 0, 6)
    assert status("dev/pipe") == ("prw-------", 9, 0)
    assert (root / "dev/sda").stat().st_rdev == os.makedev(8, 0)
    assert os.getxattr(root / "ping", "security.capability") == NET_RAW  # set after the owner, whose change would clear it
    assert os.getxattr(root / "ping", "user.note") == b"\xff\n\0"


async def test_marks_as_overlayfs_understands_them(node: UnpackNode) -> None:
    base = await node.add(
        {"gone": b"", "dir/gone": b"", "dir/kept": b"", "opaque/old": b"", "redone/old": b"", "tmp/": directory(0o1777), "sub/deep/x": b""}
    )
    middle = await node.add(
        [
            whiteout("gone"), whiteout("dir/gone"),
            ("opaque/.wh..wh..opq", b""), ("opaque/new", b""),
            whiteout("redone"), ("redone/new", b""),
            ("tmp/file", b""), whiteout("sub/deep"),
        ],
        base.chain_id,
    )  # fmt: skip
    top = await node.add({"sub/deep/y": b"", "gone": b"back"}, middle.chain_id)
    assert await node.snapshots.read_file(middle.chain_id, "/opaque/old") is None
    assert await node.snapshots.read_file(middle.chain_id, "/opaque/new") == b""
    assert await node.snapshots.read_file(middle.chain_id, "/gone") is None
    async with node.mounted(await node.snapshots.prepare("c1", middle.chain_id)) as rootfs:
        found = sorted(str(path.relative_to(rootfs)) for path in rootfs.rglob("*"))
        assert found == ["dir", "dir/kept", "opaque", "opaque/new", "redone", "redone/new", "sub", "tmp", "tmp/file"]
        assert (rootfs / "tmp").stat().st_mode & 0o7777 == 0o1777  # the layer has the file, not the directory
    async with node.mounted(await node.snapshots.prepare("c2", top.chain_id)) as rootfs:
        assert (rootfs / "gone").read_bytes() == b"back"
        assert [path.name for path in (rootfs / "sub/deep").iterdir()] == ["y"]


async def test_an_opaque_root_hides_all_below(node: UnpackNode) -> None:
    base = await node.add({"old": b""})
    top = await node.add({".wh..wh..opq": b"", "new": b""}, base.chain_id)
    async with node.mounted(await node.snapshots.prepare("c1", top.chain_id)) as rootfs:
        assert [path.name for path in rootfs.iterdir()] == ["new"]
    assert await node.snapshots.read_file(top.chain_id, "/old") is None


async def test_a_volatile_upper_is_not_mounted_twice(node: UnpackNode) -> None:
    """Why `prepare` makes a fresh one each time, and there is no other way to the mounts."""
    layer = await node.add({"x": b""})
    mounts = await node.snapshots.prepare("c1", layer.chain_id)
    async with node.mounted(mounts) as rootfs:
        (rootfs / "written").write_bytes(b"by a container")
    with pytest.raises(OSError, match="mount"):
        async with node.mounted(mounts):
            pass
    await node.snapshots.remove("c1")
    assert list((node.root / "containers").iterdir()) == []
    async with node.mounted(await node.snapshots.prepare("c1", layer.chain_id)) as rootfs:
        assert not (rootfs / "written").exists()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As short as the default root; a test's own directory is not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        yield Path(path)


async def test_one_hundred_layers(short_path: Path) -> None:
    node = UnpackNode(short_path)
    await node.snapshots.open(())
    parent = ""
    for number in range(100):
        parent = (await node.add({f"file{number}": b"", "last": str(number).encode()}, parent)).chain_id
    mounts = await node.snapshots.prepare("c1", parent)
    assert len(",".join(mounts[0].options)) < 4096
    async with node.mounted(mounts) as rootfs:
        assert len(list(rootfs.iterdir())) == 101
        assert (rootfs / "last").read_bytes() == b"99"
    await node.processes.stop()


async def test_removal_of_what_a_container_protected(node: UnpackNode) -> None:
    layer = await node.add({"x": b""})
    await node.snapshots.prepare("c1", layer.chain_id)
    upper = node.root / "containers/c1/fs"
    (upper / "dir/sub").mkdir(parents=True)
    (upper / "dir/file").touch()
    chattr = Command(("chattr", "+i", str(upper / "dir/file"), str(upper / "dir/sub"), str(upper / "dir")), upper, {"PATH": os.defpath})
    if (await node.processes.run(chattr)).returncode != 0:
        pytest.skip("this file system has no immutable flag")
    await node.snapshots.remove("c1")
    assert not upper.parent.exists()


async def test_removal_stops_at_a_mount(node: UnpackNode, tmp_path: Path) -> None:
    layer = await node.add({"x": b""})
    await node.snapshots.prepare("c1", layer.chain_id)
    inside = node.root / "containers/c1/fs/mnt"
    inside.mkdir()
    await Mounts().mount(Mount("tmpfs", "tmpfs", ()), inside)
    (inside / "precious").touch()
    with pytest.raises(OrlopError, match="holds a mount"):
        await node.snapshots.remove("c1")
    assert (inside / "precious").exists()
    await Mounts().unmount(inside)
    await node.snapshots.remove("c1")
    assert not inside.exists()


LAYER = layer_tar({"file": bytes(range(256)) * 1000})


@pytest.mark.parametrize(
    ("blob", "error", "sentence"),
    [
        (gzipped(LAYER)[:-20], DataLoss, "damaged"),
        (gzipped(LAYER)[:-2000] + bytes(2000), DataLoss, "damaged"),
        (gzipped(LAYER[:4000]), DataLoss, "middle of a file"),
        (gzipped(LAYER) + gzipped(b"hidden behind the end"), DataLoss, "has the digest"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, DataLoss, "damaged"),
        (b"this is no layer at all" * 100, DataLoss, "not tar"),
        (b"", DataLoss, "has the digest"),
    ],
)
async def test_corrupt_layers(node: UnpackNode, blob: bytes, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        await node.add(LAYER, blob=blob)
    assert node.snapshots.layers() == []


@pytest.mark.parametrize(
    ("entries", "error", "sentence"),
    [
        ({"../../escape": b""}, InvalidArgument, "'..' in it"),
        ({"etc/": directory(), "etc/shadow": hard_link("/etc/shadow")}, InvalidArgument, "hard link"),
        ({"passwd": hard_link("/etc/passwd")}, InvalidArgument, "doesn't hold"),
        ([(f"dev/{number}", Node(tarfile.BLKTYPE, device=(8, number))) for number in range(2000)], ResourceExhausted, "device nodes"),
        ({"dev": Node(tarfile.CHRTYPE, device=(8**7 - 1, 8**7 - 1))}, InvalidArgument, "can't be made"),
    ],
)
async def test_hostile_layers(node: UnpackNode, entries: Entries, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        await node.add(entries)
    assert node.snapshots.layers() == []


async def test_a_way_out_leads_nowhere(node: UnpackNode, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = await node.add([("l", symlink(str(outside))), ("l/file", b"1"), ("up", symlink("../" * 30 + str(outside))), ("up/b", b"2")])
    assert list(outside.iterdir()) == []
    inside = node.fs(layer) / str(outside).lstrip("/")
    assert sorted(path.name for path in inside.iterdir()) == ["b", "file"]


async def test_a_bomb_is_cut_short(tmp_path: Path) -> None:
    node = UnpackNode(tmp_path, Limits(bytes=10 << 20))
    await node.snapshots.open(())
    with pytest.raises(ResourceExhausted, match="more than 10485760 bytes"):
        await node.add({"zeros": bytes(50 << 20)})
    await node.processes.stop()


async def test_a_full_disk(node: UnpackNode, tmp_path: Path) -> None:
    await Mounts().mount(Mount("tmpfs", "tmpfs", ("size=1m",)), node.root / "unpack")
    try:
        with pytest.raises(ResourceExhausted, match="disk is full"):
            await node.add({"big": bytes(2 << 20)})
    finally:
        await Mounts().unmount(node.root / "unpack")


async def test_two_imports_of_a_layer_share_one_copy(node: UnpackNode) -> None:
    tar = layer_tar({"shared": b"x"})
    node.blob.write_bytes(tar)
    unpacked = []

    async def bring(key: str) -> Layer:
        async with node.snapshots.claim(digest(tar)):
            if (there := node.snapshots.layer(digest(tar))) is not None:
                return there
            unpacked.append(key)
            return await node.snapshots.commit(await node.snapshots.unpack(key, node.blob, digest(tar)), "")

    layers = await asyncio.gather(bring("a"), bring("b"), bring("c"))
    assert unpacked == ["a"]
    assert len(set(layers)) == 1
    assert len(list((node.root / "layers").iterdir())) == 1


async def test_a_killed_unpack_leaves_what_can_be_discarded(node: UnpackNode) -> None:
    """A worker that waits for its layer for ever: the caller gives up, and the worker is gone before that returns."""
    os.mkfifo(node.blob)
    task = asyncio.create_task(node.snapshots.unpack("u1", node.blob, "sha256:" + "0" * 64))
    while not any("unpack_worker" in " ".join(process.cmdline) for process in await node.processes.table()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await node.snapshots.discard("u1")
    assert list((node.root / "unpack").iterdir()) == []


class Confined(Processes):
    """Runs something else in place of the worker's unpacking: what the worker could do if a decoder of it were taken over."""

    attack = """
import errno, json, os, socket, sys
from pathlib import Path
from agent.linux.confinement import confine
from agent.snapshots.unpack_worker import CAPABILITIES
confine(Path(json.load(sys.stdin)["target"]), CAPABILITIES)
said = {"root": sorted(os.listdir("/")), "cwd": os.getcwd()}
def attempt(name, act):
    try:
        said[name] = str(act())
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
def device():
    os.mknod("/disk", 0o60600, os.makedev(7, 0))
    return os.open("/disk", os.O_RDONLY)
from agent.linux import libc
attempt("device", device)
attempt("chroot", lambda: os.chroot("/"))
attempt("mount", lambda: libc.mount("none", "/", "tmpfs", 0))
attempt("setuid", lambda: os.setuid(1))
attempt("namespace", lambda: libc.unshare(libc.CLONE_NEWNS))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("network", lambda: socket.socket().connect(("127.0.0.1", 9)))
attempt("trusted", lambda: os.setxattr("/", "trusted.overlay.opaque", b"y"))
attempt("above", lambda: sorted(os.listdir("/../..")))
print(json.dumps(said))
"""

    said: Completed | None = None

    async def run(self, command: Command) -> Completed:
        argv = (command.argv[0], "-I", "-c", self.attack)
        self.said = await super().run(Command(argv, command.cwd, command.env, command.stdin, pass_fds=command.pass_fds))
        return self.said


async def test_what_a_worker_that_was_taken_over_could_do(tmp_path: Path) -> None:
    processes = Confined()
    snapshots = Snapshotter(tmp_path / "s", processes)
    await snapshots.open(())
    (tmp_path / "blob").touch()
    with pytest.raises(OrlopError):
        await snapshots.unpack("u1", tmp_path / "blob", "sha256:" + "0" * 64)
    assert processes.said is not None
    assert json.loads(processes.said.stdout) == {
        "root": [],
        "cwd": "/",
        "device": "EACCES",
        "chroot": "EPERM",
        "mount": "EPERM",
        "setuid": "EPERM",
        "namespace": "EPERM",
        "kill": "EPERM",
        "network": "ENETUNREACH",
        "trusted": "EPERM",
        "above": "['disk']",
    }
    await snapshots.discard("u1")
    await processes.stop()


async def test_a_worker_has_a_budget(node: UnpackNode, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(node.blob)
    monkeypatch.setattr("agent.timeouts.UNPACK_LAYER", 0.2)
    with pytest.raises(DeadlineExceeded, match="unpack_worker took longer than"):
        await node.snapshots.unpack("u1", node.blob, "sha256:" + "0" * 64)
    await node.snapshots.discard("u1")
