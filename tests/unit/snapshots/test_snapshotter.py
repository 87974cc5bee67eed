from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import failpoints
from agent.errdefs import AlreadyExists, Busy, DataLoss, FailedPrecondition, Internal, InvalidArgument, NotFound
from agent.linux.mounts import Mount
from agent.snapshots.layers import Layer, chain_ids
from agent.snapshots.snapshotter import Snapshotter
from tests.images import Entries, Node, digest, directory, gzipped, layer_tar
from tests.unit.snapshots.fakes import InProcessRunner


class Fixture:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.runner = InProcessRunner()
        self.snapshots = Snapshotter(root / "snapshots", self.runner)

    async def add(self, entries: Entries, parent: str = "", key: str = "u1") -> Layer:
        unpacked = await self.snapshots.unpack(key, self.blob(layer_tar(entries)), digest(layer_tar(entries)))
        return await self.snapshots.commit(unpacked, parent)

    def blob(self, tar: bytes) -> Path:
        path = self.root / "blob"
        path.write_bytes(gzipped(tar))
        return path

    async def reopened(self, *known: str) -> tuple[Snapshotter, list[str]]:
        snapshots = Snapshotter(self.root / "snapshots", self.runner)
        removed = await snapshots.open(known)
        await snapshots.close(5)
        return snapshots, removed

    def below(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.root / "snapshots" / name).iterdir())


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    await fixture.snapshots.open(())
    yield fixture
    failpoints.configure("")
    await fixture.snapshots.close(5)


async def test_a_layer_appears_complete(fixture: Fixture) -> None:
    layer = await fixture.add({"./": directory(0o711), "etc/motd": b"hello"})
    assert fixture.snapshots.layer(layer.chain_id) == layer
    assert fixture.below("layers") == [layer.chain_id[7:]]
    assert fixture.below("unpack") == []
    assert (fixture.root / "snapshots/l" / layer.short / "etc/motd").read_bytes() == b"hello"
    assert (layer.parent, layer.size, layer.inodes) == ("", 2 * 4096, 2)
    again, removed = await fixture.reopened()
    assert (again.layers(), removed) == ([layer], [])


async def test_implied_directories_take_after_the_layer_below(fixture: Fixture) -> None:
    base = await fixture.add({"./": directory(0o700), "tmp/": directory(0o1777, mtime=5000)})
    top = await fixture.add({"tmp/x": b"", "new/y": b""}, base.chain_id)
    root = fixture.root / "snapshots/layers" / top.chain_id[7:] / "fs"
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "tmp").stat().st_mtime == 5000
    assert (root / "new").stat().st_mode & 0o7777 == 0o755
    assert root.stat().st_mode & 0o7777 == 0o700
    assert top.chain_id == chain_ids((base.diff_id, top.diff_id))[1]


async def test_mounts_of_a_container(fixture: Fixture) -> None:
    base = await fixture.add({"./": directory(0o711), "x": b""})
    top = await fixture.add({"y": b""}, base.chain_id)
    root = fixture.root / "snapshots"
    assert await fixture.snapshots.prepare("c1", top.chain_id) == [
        Mount(
            "overlay",
            "overlay",
            (
                "index=off",
                "volatile",
                f"workdir={root}/containers/c1/work",
                f"upperdir={root}/containers/c1/fs",
                f"lowerdir={root}/l/{top.short}:{root}/l/{base.short}",
            ),
        )
    ]
    assert (root / "containers/c1/fs").stat().st_mode & 0o7777 == 0o711  # what a container sees as the mode of /


async def test_an_image_without_layers(fixture: Fixture) -> None:
    assert await fixture.snapshots.prepare("c1", "") == [Mount("bind", str(fixture.root / "snapshots/containers/c1/fs"), ("rbind", "rw"))]


async def test_a_snapshot_is_never_made_twice(fixture: Fixture) -> None:
    layer = await fixture.add({"x": b""})
    await fixture.snapshots.prepare("c1", layer.chain_id)
    with pytest.raises(AlreadyExists):
        await fixture.snapshots.prepare("c1", layer.chain_id)
    with pytest.raises(NotFound, match="imported or pulled again"):
        await fixture.snapshots.prepare("c2", "sha256:" + "0" * 64)
    assert not fixture.snapshots.exists("c2")


async def test_the_options_of_100_layers_fit_into_a_page() -> None:
    """With the default root and the longest key, the mounts are to be made without any trick of the shim's."""
    snapshots = Snapshotter(Path("/var/lib/orlop/snapshots"), InProcessRunner())
    links = [f"/var/lib/orlop/snapshots/l/{number}" for number in range(100)]
    key = "k" * 76
    options = (f"workdir={snapshots.root}/containers/{key}/work", f"upperdir={snapshots.root}/containers/{key}/fs")
    assert len(",".join(("index=off,volatile", *options, "lowerdir=" + ":".join(links)))) < 4096 - 512


async def test_a_layer_in_use_stays(fixture: Fixture) -> None:
    base = await fixture.add({"x": b""})
    top = await fixture.add({"y": b""}, base.chain_id)
    await fixture.snapshots.prepare("c1", top.chain_id)
    assert fixture.snapshots.unused(()) == []
    with pytest.raises(FailedPrecondition, match="in use by c1"):
        await fixture.snapshots.delete_layer(top.chain_id)
    await fixture.snapshots.remove("c1")
    assert fixture.snapshots.unused([base.chain_id]) == [top.chain_id]
    assert fixture.snapshots.unused(()) == [top.chain_id, base.chain_id]  # an order in which they can go
    with pytest.raises(FailedPrecondition, match="in use by sha256"):
        await fixture.snapshots.delete_layer(base.chain_id)
    for chain_id in fixture.snapshots.unused(()) * 2:
        await fixture.snapshots.delete_layer(chain_id)
    assert [fixture.below(name) for name in ("layers", "l", "trash", "containers")] == [[], [], [], []]


async def test_short_names_are_not_given_twice(fixture: Fixture) -> None:
    first = await fixture.add({"x": b""})
    again, _ = await fixture.reopened()
    unpacked = await again.unpack("u2", fixture.blob(layer_tar({"y": b""})), digest(layer_tar({"y": b""})))
    assert (await again.commit(unpacked, "")).short != first.short


async def test_snapshots_are_known_after_a_restart(fixture: Fixture) -> None:
    layer = await fixture.add({"x": b""})
    await fixture.snapshots.prepare("c1", layer.chain_id)
    await fixture.snapshots.prepare("c2", layer.chain_id)
    (fixture.root / "snapshots/containers/c3").mkdir()  # cut off at its first step
    again, removed = await fixture.reopened("c1", "c3", "never-made")
    assert removed == ["containers/c2"]
    assert fixture.below("containers") == ["c1", "c3"]
    assert again.unused(()) == []
    await again.remove("c1")
    await again.remove("c3")
    await again.remove("never-made")
    assert again.unused(()) == [layer.chain_id]


async def test_start_sweeps_what_nobody_owns(fixture: Fixture) -> None:
    root = fixture.root / "snapshots"
    layer = await fixture.add({"x": b""})
    for name in ("unpack/u1/fs/a", "trash/t/fs", "layers/" + "0" * 64 + "/fs"):
        (root / name).mkdir(parents=True)
    (root / "l/stale").symlink_to("nowhere")
    (root / "l" / layer.short).unlink()
    _, removed = await fixture.reopened()
    assert removed == ["layers/" + "0" * 64, "unpack/u1"]
    assert [fixture.below(name) for name in ("unpack", "trash", "l", "layers")] == [[], [], [layer.short], [layer.chain_id[7:]]]


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (b"", Internal, "the worker's last words"),
        (b"not JSON", Internal, "ended with 0"),
        (b"[]", Internal, "ended with 0"),
        (b'{"size": 1}', Internal, "ended with 0"),
        (json.dumps({"code": DataLoss.code, "error": "broken"}).encode(), DataLoss, "layer sha256:[0-9a-f]{64}: broken"),
        (json.dumps({"code": InvalidArgument.code, "error": "evil"}).encode(), InvalidArgument, "evil"),
    ],
)
async def test_what_a_worker_says(fixture: Fixture, answer: bytes, error: type[Exception], sentence: str) -> None:
    fixture.runner.say = lambda request: answer
    with pytest.raises(error, match=sentence):
        await fixture.add({"x": b""})
    assert fixture.below("unpack") == ["u1"]  # the ledger's until it is discarded
    await fixture.snapshots.discard("u1")
    await fixture.snapshots.discard("u1")
    assert fixture.below("unpack") == []


@pytest.mark.parametrize("path", ["../../../secret", "a/../../secret", "//", "link"])
async def test_the_worker_is_not_trusted_with_paths(fixture: Fixture, path: str) -> None:
    (fixture.root / "secret").mkdir(mode=0o700)
    base = await fixture.add({"link/": directory(0o711)})

    def say(request: dict[str, object]) -> bytes:
        (Path(str(request["target"])) / "link").symlink_to(fixture.root / "secret")
        return json.dumps({"size": 1, "inodes": 1, "opaque": [], "implied": [path], "ignored_xattrs": 0}).encode()

    fixture.runner.say = say
    with pytest.raises((Internal, NotADirectoryError)):  # noqa: PT012  # either step may find it out
        unpacked = await fixture.snapshots.unpack("u2", fixture.blob(b""), "sha256:" + "d" * 64)
        await fixture.snapshots.commit(unpacked, base.chain_id)
    assert (fixture.root / "secret").stat().st_mode & 0o777 == 0o700
    assert fixture.below("layers") == [base.chain_id[7:]]


@pytest.mark.parametrize("point", ["snapshots.unpack.worker", "snapshots.commit.rename"])
async def test_a_failed_import_of_a_layer_is_not_visible(fixture: Fixture, point: str) -> None:
    failpoints.configure(f"{point}=error")
    with pytest.raises(Internal, match="failpoint"):
        await fixture.add({"x": b""})
    assert (fixture.below("layers"), fixture.below("l"), fixture.snapshots.layers()) == ([], [], [])


async def test_a_wrong_diff_id(fixture: Fixture) -> None:
    with pytest.raises(DataLoss, match="has the digest"):
        await fixture.snapshots.unpack("u1", fixture.blob(layer_tar({"x": b""})), "sha256:" + "0" * 64)


async def test_a_missing_parent(fixture: Fixture) -> None:
    with pytest.raises(NotFound, match="can't be put on top"):
        await fixture.add({"x": b""}, "sha256:" + "0" * 64)


async def test_a_cancelled_prepare_can_be_removed(fixture: Fixture) -> None:
    layer = await fixture.add({"x": b""})
    failpoints.configure("snapshots.prepare.mkdir=hang")
    task = asyncio.create_task(fixture.snapshots.prepare("c1", layer.chain_id))
    await asyncio.sleep(0)
    assert fixture.snapshots.unused(()) == []  # in use from the first moment
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failpoints.configure("")
    await fixture.snapshots.remove("c1")
    assert fixture.snapshots.unused(()) == [layer.chain_id]


async def test_what_is_mounted_is_never_removed(tmp_path: Path) -> None:
    """Neither by a release that comes too early, nor by a start that has lost its ledger."""
    fixture = Fixture(tmp_path)
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    upper = tmp_path / "snapshots/containers/c1/fs"
    line = f"40 30 0:50 / /run/orlop/x/rootfs rw,relatime - overlay overlay rw,lowerdir=/l/0,upperdir={upper},workdir=/w,volatile\n"
    (proc / "self/mountinfo").write_text("30 1 254:0 / / rw - ext4 /dev/vda rw\n" + line)
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("boot\n")
    fixture.snapshots = Snapshotter(tmp_path / "snapshots", fixture.runner, proc=proc)
    await fixture.snapshots.open(())
    layer = await fixture.add({"x": b""})
    for key in ("c1", "c2"):
        await fixture.snapshots.prepare(key, layer.chain_id)
    with pytest.raises(Busy, match="c1 is mounted at /run/orlop/x/rootfs"):
        await fixture.snapshots.remove("c1")
    assert upper.is_dir()
    again = Snapshotter(tmp_path / "snapshots", fixture.runner, proc=proc)
    assert await again.open(()) == ["containers/c2"]
    await again.close(5)
    assert upper.is_dir()
    assert again.unused(()) == []
    (proc / "self/mountinfo").write_text("")
    await again.remove("c1")
    assert not upper.exists()


async def test_usage(fixture: Fixture) -> None:
    layer = await fixture.add({"x": Node(data=bytes(10000))})
    assert await fixture.snapshots.measure() == {}
    await fixture.snapshots.prepare("c1", layer.chain_id)
    fresh = fixture.snapshots.usage("c1")
    assert fresh is not None
    assert (fresh.size, fresh.inodes) == (0, 0)
    (fixture.root / "snapshots/containers/c1/fs/file").write_bytes(bytes(5000))
    (fixture.root / "snapshots/containers/c1/fs/again").hardlink_to(fixture.root / "snapshots/containers/c1/fs/file")
    (fixture.root / "snapshots/containers/c1/fs/dir").mkdir()
    await fixture.snapshots.measure()
    usage = fixture.snapshots.usage("c1")
    assert usage is not None
    assert usage.inodes == 2
    assert usage.size >= 5000
    total = fixture.snapshots.total()
    assert (total.size, total.inodes) == (3 * 4096 + usage.size, 1 + usage.inodes)
    await fixture.snapshots.remove("c1")
    assert fixture.snapshots.total().size == 3 * 4096


async def test_a_measurement_that_is_cut_short_takes_nothing_back(fixture: Fixture) -> None:
    layer = await fixture.add({"x": Node(data=b"x")})
    await fixture.snapshots.prepare("c1", layer.chain_id)
    (fixture.root / "snapshots/containers/c1/fs/file").write_bytes(bytes(50_000))
    await fixture.snapshots.measure()
    before = fixture.snapshots.usage("c1")
    assert before is not None
    assert before.size >= 50_000
    fixture.runner.seconds = -1.0
    await fixture.snapshots.measure()
    assert fixture.snapshots.usage("c1") == before


async def test_files_of_an_image(fixture: Fixture) -> None:
    base = await fixture.add({"etc/passwd": b"root"})
    top = await fixture.add({"x": b""}, base.chain_id)
    assert await fixture.snapshots.read_file(top.chain_id, "/etc/passwd") == b"root"
    assert await fixture.snapshots.read_file(top.chain_id, "/etc/group") is None
    assert await fixture.snapshots.read_file("", "/etc/group") is None


async def test_names_that_would_break_mount_options() -> None:
    for name in ("/a:b", "/a,b", "/a\\b"):
        with pytest.raises(InvalidArgument, match="overlay"):
            Snapshotter(Path(name), InProcessRunner())
    with pytest.raises(InvalidArgument):
        await Snapshotter(Path("/tmp"), InProcessRunner()).prepare("../x", "")
