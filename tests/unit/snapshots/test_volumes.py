"""Images as volumes: what an engine is told to mount, and what a container that was told so keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound
from agent.linux.mounts import Mount
from tests.images import symlink
from tests.unit.snapshots.test_snapshotter import Fixture


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    await fixture.snapshots.open(())
    yield fixture
    await fixture.snapshots.close(5)


def lowers(mount: Mount, root: Path) -> list[str]:
    """Its lower directories, relative to `root`."""
    assert (mount.type, mount.source, mount.options[0]) == ("overlay", "overlay", "ro")
    (option,) = mount.options[1:]
    return [path.removeprefix(f"{root}/") for path in option.removeprefix("lowerdir=").split(":")]


async def test_the_lower_directories_of_an_image(fixture: Fixture) -> None:
    root = fixture.root / "snapshots"
    base = await fixture.add({"etc/a": b"", "usr/share/x": b""})
    top = await fixture.add({"etc/b": b"", "conf": symlink("/etc")}, base.chain_id)
    one, two = f"l/{base.short}", f"l/{top.short}"
    for sub_path, expected in {
        "": [two, one],
        "etc": [f"{two}/etc", f"{one}/etc"],
        "conf": [f"{two}/etc", f"{one}/etc"],
        "usr/share": [f"{one}/usr/share", "empty/0"],
    }.items():
        found = lowers(await fixture.snapshots.volume(top.chain_id, sub_path), root)
        assert found == expected
        assert all((root / path).is_dir() for path in found)
    assert lowers(await fixture.snapshots.volume(base.chain_id), root) == [one, "empty/0"]
    assert lowers(await fixture.snapshots.volume(""), root) == ["empty/0", "empty/1"]  # an image without layers


@pytest.mark.parametrize("sub_path", ["nowhere", "etc/a", "dangling"])
async def test_what_is_no_directory(fixture: Fixture, sub_path: str) -> None:
    layer = await fixture.add({"etc/a": b"", "dangling": symlink("/run")})
    with pytest.raises(NotFound, match=f"'{sub_path}' is no directory of the image"):
        await fixture.snapshots.volume(layer.chain_id, sub_path)


async def test_an_image_that_is_not_there(fixture: Fixture) -> None:
    with pytest.raises(NotFound, match="is not on this node"):
        await fixture.snapshots.volume("sha256:" + "0" * 64)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
async def test_directories_that_mount_options_can_not_name(fixture: Fixture, name: str) -> None:
    layer = await fixture.add({f"{name}/x": b"", "link": symlink(name)})
    for sub_path in (name, "link"):
        with pytest.raises(InvalidArgument, match="overlay mount options"):
            await fixture.snapshots.volume(layer.chain_id, sub_path)


async def test_options_that_the_kernel_would_cut_off(fixture: Fixture) -> None:
    deep = "/".join(["d" * 200] * 12)
    chain_id = ""
    for number in range(2):
        chain_id = (await fixture.add({f"{deep}/{number}": b""}, chain_id)).chain_id
    with pytest.raises(InvalidArgument, match=r"in 2 layers of the image: .* don't fit in a page"):
        await fixture.snapshots.volume(chain_id, deep)


async def test_a_container_keeps_the_layers_of_its_volumes(fixture: Fixture) -> None:
    """As long as its snapshot is there, after a restart too; and not the layers of other images."""
    own, used, other = [await fixture.add({name: b""}) for name in "abc"]
    await fixture.snapshots.prepare("c1", own.chain_id, [used.chain_id])
    with pytest.raises(FailedPrecondition, match="in use by c1"):
        await fixture.snapshots.delete_layer(used.chain_id)
    again, _ = await fixture.reopened("c1")
    for snapshots in (fixture.snapshots, again):
        assert snapshots.unused(()) == [other.chain_id]
    await again.remove("c1")
    assert set(again.unused(())) == {own.chain_id, used.chain_id, other.chain_id}


async def test_a_volume_that_is_gone_makes_no_snapshot(fixture: Fixture) -> None:
    layer = await fixture.add({"x": b""})
    with pytest.raises(NotFound, match="is not on this node"):
        await fixture.snapshots.prepare("c1", layer.chain_id, ["sha256:" + "0" * 64])
    assert not fixture.snapshots.exists("c1")
    assert fixture.below("containers") == []


async def test_a_snapshot_of_an_earlier_version_names_one_chain(fixture: Fixture) -> None:
    layer = await fixture.add({"x": b""})
    directory = fixture.root / "snapshots/containers/c1"
    directory.mkdir()
    (directory / "chain").write_text(layer.chain_id)
    again, _ = await fixture.reopened("c1")
    assert again.unused(()) == []
