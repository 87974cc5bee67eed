"""The image service on a real store, content store and snapshotter; only the unpack worker runs in the test's process."""

from __future__ import annotations

import asyncio
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent import failpoints
from agent.errdefs import DataLoss, Internal, InvalidArgument, NotFound, OrlopError
from agent.images.image import Image
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from tests.images import (
    OCI,
    Blobs,
    Entries,
    Node,
    add_image,
    add_index,
    digest,
    layer_tar,
    make_docker_archive,
    make_oci_layout,
    named,
    symlink,
)
from tests.unit.images.node import ImageNode

BASE: Entries = {"etc/passwd": b"root:x:0:0", "bin/sh": b"#!"}
CONFIG = {"Cmd": ["/bin/sh"], "User": "1000"}


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
async def test_import_of_an_oci_layout(node: ImageNode, tmp_path: Path, name: str) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / name, {"busybox": [BASE, {"more": b""}]}, CONFIG))
    assert image.tags == ("docker.io/library/busybox:latest",)
    assert [digest.partition("@")[0] for digest in image.digests] == ["docker.io/library/busybox"]
    assert image.config.cmd == ("/bin/sh",)
    assert image.config.uid == 1000
    assert len(image.layers) == 2
    assert image.size > 2 * 4096
    assert node.left() == {"sha256": 2, "layers": 2, "l": 2}  # the compressed layers have served their purpose
    assert node.store.ledger.all() == []
    assert json.loads(await node.images.config_document(image.id))["config"] == CONFIG


@pytest.mark.parametrize("name", ["saved", "saved.tar"])
async def test_import_of_a_docker_archive(node: ImageNode, tmp_path: Path, name: str) -> None:
    archive = make_docker_archive(tmp_path / name, {"busybox:1": [BASE], "other:2": [BASE, {"more": b""}], "": [{"x": b""}]})
    images = await node.images.import_archive(archive)
    assert [image.tags for image in images] == [("docker.io/library/busybox:1",), ("docker.io/library/other:2",), ()]
    assert [image.digests for image in images] == [(), (), ()]  # nobody has pushed it, so nobody can pull it by digest
    assert node.left() == {"sha256": 3, "layers": 3, "l": 3}
    assert len(node.runner.unpacked) == 3  # the shared layer once


async def test_an_archive_that_is_both_is_an_oci_layout(node: ImageNode, tmp_path: Path) -> None:
    """As `docker save` writes since version 25."""
    blobs = Blobs()
    descriptor = add_image(blobs, [layer_tar(BASE)], compress=bytes)
    names = {"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"}
    add_index(blobs, [{**descriptor, "annotations": names}])
    blobs.files["manifest.json"] = b"[]"
    (image,) = await node.images.import_archive(blobs.write(tmp_path / "a.tar"))
    assert image.digests == (f"docker.io/library/app@{descriptor['digest']}",)


async def test_docker_archives_link_to_layers_that_images_share(node: ImageNode, tmp_path: Path) -> None:
    tar = layer_tar(BASE)
    blobs = Blobs()
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest(tar)]}}).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["b/layer.tar"]}]).encode()
    blobs.files = {"c.json": config, "manifest.json": manifest, "a/layer.tar": tar}
    (tmp_path / "x.tar").write_bytes(layer_tar({**blobs.files, "b/layer.tar": symlink("../a/layer.tar")}))
    (image,) = await node.images.import_archive(tmp_path / "x.tar")
    assert image.layers == (digest(tar),)


async def test_a_name_given_by_the_caller(node: ImageNode, tmp_path: Path) -> None:
    blobs = Blobs()
    descriptor = add_image(blobs, [layer_tar(BASE)])
    add_index(blobs, [{**descriptor, "annotations": {"org.opencontainers.image.ref.name": "latest"}}])  # as skopeo and buildx write
    archive = blobs.write(tmp_path / "a")
    (image,) = await node.images.import_archive(archive)
    assert (image.tags, image.digests) == ((), ())
    (image,) = await node.images.import_archive(archive, ["app:v1", "app:v2"])
    assert image.tags == ("docker.io/library/app:v1", "docker.io/library/app:v2")
    two = make_oci_layout(tmp_path / "b", {"one": [BASE], "two": [{"x": b""}]})
    with pytest.raises(InvalidArgument, match="holds 2 images"):
        await node.images.import_archive(two, ["name"])


async def test_indexes_in_indexes_and_other_platforms(node: ImageNode, tmp_path: Path) -> None:
    blobs = Blobs()
    ours = add_image(blobs, [layer_tar(BASE)])
    theirs = {"mediaType": ours["mediaType"], "digest": "sha256:" + "0" * 64, "size": 1, "platform": {"os": "linux", "architecture": "vax"}}
    index = blobs.add_json({"manifests": [theirs, ours]}, f"{OCI}.index.v1+json")
    add_index(blobs, [named(index, "multi:1"), theirs])
    (image,) = await node.images.import_archive(blobs.write(tmp_path / "a.tar"))
    assert image.tags == ("docker.io/library/multi:1",)
    add_index(blobs, [theirs])
    with pytest.raises(NotFound, match="no image for linux/"):
        await node.images.import_archive(blobs.write(tmp_path / "b.tar"))


async def test_an_image_with_two_names_is_one_image(node: ImageNode, tmp_path: Path) -> None:
    blobs = Blobs()
    descriptor = add_image(blobs, [layer_tar(BASE)])
    add_index(blobs, [named(descriptor, "a:1"), named(descriptor, "quay.io/b:2")])
    (image,) = await node.images.import_archive(blobs.write(tmp_path / "x.tar"))
    assert image.tags == ("docker.io/library/a:1", "quay.io/b:2")
    assert len(image.digests) == 2


async def test_finding_an_image(node: ImageNode, tmp_path: Path) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"quay.io/app:v1": [BASE]}))
    manifest = image.digests[0].partition("@")[2]
    for name in (image.id, image.id[7:], "quay.io/app:v1", image.digests[0], f"quay.io/app:anything@{manifest}"):
        assert node.images.find(name) == image
        assert node.images.images(name) == [image]
    for name in ("quay.io/app", "quay.io/app:v2", "app:v1", image.id[:20], f"quay.io/other@{manifest}", "", "No Such", "sha256:x"):
        assert node.images.find(name) is None
    assert node.images.images() == [image]
    assert node.images.images("nothing") == []
    with pytest.raises(NotFound, match="'nothing' is not on this node"):
        node.images.resolve("nothing")


async def test_a_tag_moves_to_the_newest_import(node: ImageNode, tmp_path: Path) -> None:
    (old,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:v1": [BASE]}))
    (new,) = await node.images.import_archive(make_oci_layout(tmp_path / "b", {"app:v1": [{"x": b""}]}))
    again = await node.restarted()
    for service in (node.images, again.images):
        assert service.resolve("app:v1").id == new.id
        assert service.resolve(old.id).tags == ()
        assert service.resolve(old.id).digests == old.digests
    await again.stop()
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


@pytest.mark.parametrize("point", ["store.put.commit=1*error", "store.put.commit=2*error"])
async def test_a_tag_is_of_one_image_wherever_its_move_is_cut_off(node: ImageNode, tmp_path: Path, point: str) -> None:
    (old,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:v1": [BASE]}))
    failpoints.configure(point)
    with pytest.raises(Internal):
        await node.images.import_archive(make_oci_layout(tmp_path / "b", {"app:v1": [{"x": b""}]}))
    again = await node.restarted()
    winner = again.images.resolve("app:v1")
    assert (winner.id == old.id) is point.endswith("=1*error")
    if winner.id != old.id:
        assert again.images.resolve(old.id).tags == ()
        await again.images.remove(winner.id)
        again = await again.restarted()
        assert again.images.find("app:v1") is None, "the tag came back"
        assert again.images.images() == [replace(old, tags=())]
    await again.stop()
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


async def test_a_move_of_a_tag_that_can_not_be_written_is_no_reason_not_to_start(node: ImageNode, tmp_path: Path) -> None:
    await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:v1": [BASE]}))
    failpoints.configure("store.put.commit=2*error")
    with pytest.raises(Internal):
        await node.images.import_archive(make_oci_layout(tmp_path / "b", {"app:v1": [{"x": b""}]}))
    await node.stop()
    failpoints.configure("store.put.commit=error")
    again = await ImageNode(tmp_path).start()
    assert len(again.images.images()) == 2
    await again.stop()
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


async def test_importing_again_changes_nothing(node: ImageNode, tmp_path: Path) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app:v1": [BASE]})
    first = await node.images.import_archive(archive)
    assert await node.images.import_archive(archive) == first
    assert len(node.runner.unpacked) == 1


async def test_two_imports_at_once_share_one_copy(node: ImageNode, tmp_path: Path) -> None:
    one = make_oci_layout(tmp_path / "a", {"one": [BASE, {"x": b""}, {"y": b""}]})
    two = make_oci_layout(tmp_path / "b.tar", {"two": [BASE, {"x": b""}, {"z": b""}]})
    await asyncio.gather(*(node.images.import_archive(archive) for archive in (one, two, one, two)))
    assert len(node.runner.unpacked) == 4
    assert node.left() == {"sha256": 4, "layers": 4, "l": 4}
    assert node.store.ledger.all() == []


async def test_removal_by_name_and_by_id(node: ImageNode, tmp_path: Path) -> None:
    blobs = Blobs()
    descriptor = add_image(blobs, [layer_tar(BASE)])
    add_index(blobs, [named(descriptor, "a:1"), named(descriptor, "a:2")])
    archive = blobs.write(tmp_path / "x.tar")
    (image,) = await node.images.import_archive(archive)
    await node.images.remove("a:1")
    assert node.images.resolve(image.id).tags == ("docker.io/library/a:2",)
    assert node.images.find("a:1") is None
    await node.images.remove("a:2")
    assert node.images.images() == []
    assert node.left() == {}
    await node.images.remove("a:2")  # gone is gone
    await node.images.import_archive(archive)
    await node.images.remove(image.id)
    assert node.images.images() == []
    assert node.left() == {}


async def test_removal_of_digest_references(node: ImageNode, tmp_path: Path) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app:1": [BASE]})
    (image,) = await node.images.import_archive(archive)
    await node.images.remove(image.digests[0])
    assert node.images.resolve("app:1").digests == ()
    await node.images.import_archive(archive)
    await node.images.import_archive(make_oci_layout(tmp_path / "b", {"app:1": [{"x": b""}]}))
    await node.images.remove(image.digests[0])  # untagged by now: its last name
    assert node.images.find(image.id) is None


async def test_removal_keeps_what_others_use(node: ImageNode, tmp_path: Path) -> None:
    (one,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"one": [BASE, {"x": b""}]}))
    await node.images.import_archive(make_oci_layout(tmp_path / "b", {"two": [BASE]}))
    await node.images.remove(one.id)
    assert node.left() == {"sha256": 2, "layers": 1, "l": 1}


async def test_a_container_keeps_its_layers_and_its_release_frees_them(node: ImageNode, tmp_path: Path) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app": [BASE]}))
    await node.store.ledger.intend(Intent(Kind.SNAPSHOT, "c1", "pod", "c1"))
    assert (await node.images.prepare_rootfs(image.id, "c1"))[0].type == "overlay"
    await node.images.remove("app")
    assert node.left() == {"layers": 1, "l": 1}
    node_two = await node.restarted()
    assert node_two.left() == {"layers": 1, "l": 1}
    assert await node_two.releases.release_owned(container="c1") == []
    await node_two.stop()
    assert node_two.left() == {}
    node.stop = node_two.stop  # type: ignore[method-assign]  # it is stopped
    with pytest.raises(NotFound):
        await node_two.images.prepare_rootfs(image.id, "c2")


async def test_a_container_keeps_the_images_that_it_mounts(node: ImageNode, tmp_path: Path) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app": [BASE], "data": [BASE, {"data/x": b""}], "other": [{"y": b""}]})
    own, data, _ = await node.images.import_archive(archive)
    await node.store.ledger.intend(Intent(Kind.SNAPSHOT, "c1", "pod", "c1"))
    await node.images.prepare_rootfs(own.id, "c1", [data.id])
    for name in ("app", "data", "other"):
        await node.images.remove(name)
    assert node.left() == {"layers": 2, "l": 2}
    with pytest.raises(NotFound):
        await node.images.volume(data.id, "data")  # for a new container it is gone
    await node.images.import_archive(archive)
    assert len(node.runner.unpacked) == 3 + 1  # those that were kept are not unpacked again
    assert (await node.images.volume(data.id, "data")).type == "overlay"
    for name in ("app", "data", "other"):
        await node.images.remove(name)
    again = await node.restarted()
    assert again.left() == {"layers": 2, "l": 2}
    assert await again.releases.release_owned(container="c1") == []
    await again.stop()
    assert again.left() == {}
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


async def test_files_and_usage(node: ImageNode, tmp_path: Path) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app": [BASE]}))
    assert await node.images.read_file(image.id, "/etc/passwd") == b"root:x:0:0"
    assert await node.images.read_file(image.id, "/etc/group") is None
    info = node.images.fs_info()
    assert info.mountpoint == str(tmp_path / "lib/snapshots")
    assert info.used_bytes == image.size
    assert info.inodes_used == 4 + 2  # two directories, two files; config and manifest
    assert abs(info.timestamp_ns / 1e9 - time.time()) < 60


async def test_pinned_images(tmp_path: Path) -> None:
    node = await ImageNode(tmp_path, pinned=("pause:3",)).start()
    images = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"pause:3": [BASE], "app:1": [{"x": b""}]}))
    assert [image.pinned for image in images] == [True, False]
    await node.images.import_archive(make_oci_layout(tmp_path / "b", {"pause:3": [{"y": b""}]}))
    assert [image.pinned for image in node.images.images()] == [False, False, True]
    await node.stop()
    by_digest = await ImageNode(tmp_path, pinned=(f"pause:tag-that-counts-nothing@{images[0].digests[0].partition('@')[2]}",)).start()
    assert [image.id for image in by_digest.images.images() if image.pinned] == [images[0].id]
    await by_digest.stop()


async def test_images_are_there_after_a_restart(node: ImageNode, tmp_path: Path) -> None:
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:1": [BASE]}))
    again = await node.restarted()
    assert again.images.images() == [image]
    await again.stop()
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


def damage_layer(node: ImageNode, image: Image) -> None:
    (node.root / "lib/snapshots/layers" / image.chain_id[7:] / "layer.json").write_bytes(b"torn")


def damage_config(node: ImageNode, image: Image) -> None:
    node.content.path(image.id).write_bytes(b"torn")


def lose_manifest(node: ImageNode, image: Image) -> None:
    node.content.path(image.manifests[0]).unlink()


@pytest.mark.parametrize("damage", [damage_layer, damage_config, lose_manifest])
async def test_an_image_that_is_damaged_on_disk_is_dropped_and_can_come_back(
    node: ImageNode, tmp_path: Path, damage: Callable[[ImageNode, Image], None]
) -> None:
    archives = [make_oci_layout(tmp_path / "a", {"app:1": [BASE]}), make_oci_layout(tmp_path / "b", {"whole:1": [{"x": b""}]})]
    (image,), (whole,) = [await node.images.import_archive(archive) for archive in archives]
    damage(node, image)
    again = await node.restarted()
    assert again.images.images() == [whole]
    await again.images.import_archive(archives[0])
    assert again.images.resolve("app:1") == image
    await again.images.remove(image.id)
    await again.images.remove(whole.id)
    await again.stop()
    assert again.left() == {}
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


def corrupt(name: Callable[[Blobs], str], change: Callable[[bytes], bytes]) -> Callable[[Blobs], None]:
    def apply(blobs: Blobs) -> None:
        blobs.files[name(blobs)] = change(blobs.files[name(blobs)])

    return apply


def blob_of(kind: str) -> Callable[[Blobs], str]:
    """The file name of the layout's only manifest, its config or its first layer."""

    def find(blobs: Blobs) -> str:
        descriptor = json.loads(blobs.files["index.json"])["manifests"][0]
        if kind != "manifest":
            manifest = json.loads(blobs.files["blobs/" + descriptor["digest"].replace(":", "/")])
            descriptor = manifest["config"] if kind == "config" else manifest["layers"][0]
        return "blobs/" + str(descriptor["digest"]).replace(":", "/")

    return find


def without(name: Callable[[Blobs], str]) -> Callable[[Blobs], None]:
    def apply(blobs: Blobs) -> None:
        del blobs.files[name(blobs)]

    return apply


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (corrupt(blob_of("manifest"), lambda data: data.replace(b"2", b"3", 1)), DataLoss, "is damaged"),
        (corrupt(blob_of("config"), lambda data: data[:-1] + b" "), DataLoss, "is damaged"),
        (corrupt(blob_of("layer"), lambda data: data[:-1] + bytes([data[-1] ^ 1])), DataLoss, "has the digest"),
        (corrupt(blob_of("layer"), lambda data: data[:-1]), DataLoss, "ended after"),
        (corrupt(blob_of("layer"), lambda data: data + b"x"), DataLoss, "longer than"),
        (corrupt(lambda blobs: "index.json", lambda data: data[:-1]), InvalidArgument, "not JSON"),
        (corrupt(lambda blobs: "index.json", lambda data: bytes(5 << 20)), InvalidArgument, "more than the"),
        (corrupt(lambda blobs: "index.json", lambda data: data.replace(b"app:1", b"App:1")), InvalidArgument, "lower case"),
        (without(blob_of("layer")), NotFound, "has no file"),
        (without(blob_of("manifest")), NotFound, "has no file"),
        (without(lambda blobs: "oci-layout"), InvalidArgument, "not an image archive"),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.tar"])
async def test_archives_that_are_wrong(
    node: ImageNode, tmp_path: Path, name: str, change: Callable[[Blobs], None], error: type[OrlopError], sentence: str
) -> None:
    blobs = Blobs()
    add_index(blobs, [named(add_image(blobs, [layer_tar(BASE), layer_tar({"x": b""})]), "app:1")])
    change(blobs)
    with pytest.raises(error, match=sentence):
        await node.images.import_archive(blobs.write(tmp_path / name))
    assert node.left() == {}
    assert node.images.images() == []
    assert node.store.ledger.all() == []


async def test_files_that_are_no_archives(node: ImageNode, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 200)
    (tmp_path / "gz").write_bytes(b"\x1f\x8b\x08" + bytes(100))
    (tmp_path / "cut").write_bytes(layer_tar({"big": bytes(5000)})[:3000])
    for name, error, sentence in [
        ("nothing", NotFound, "No such file"),
        ("text", DataLoss, "not tar"),
        ("gz", InvalidArgument, "gunzip"),
        ("cut", DataLoss, "cut off"),
        ("/dev/null", InvalidArgument, "neither a file nor a directory"),
    ]:
        with pytest.raises(error, match=sentence):
            await node.images.import_archive(tmp_path / name)


async def test_a_directory_layout_cannot_make_us_read_other_files(node: ImageNode, tmp_path: Path) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app:1": [BASE]})
    (archive / "index.json").unlink()
    (archive / "index.json").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArgument, match="not an image archive"):
        await node.images.import_archive(archive)


HOSTILE: list[tuple[Entries, str]] = [
    ({"../../x": b""}, "'..' in it"),
    ({"x": Node(tarfile.LNKTYPE, target="/etc/shadow")}, "doesn't hold"),
]


@pytest.mark.parametrize(("entries", "sentence"), HOSTILE)
async def test_a_hostile_layer_fails_the_whole_image(node: ImageNode, tmp_path: Path, entries: Entries, sentence: str) -> None:
    archive = make_oci_layout(tmp_path / "a", {"good": [BASE], "app:1": [BASE, {"y": b""}, entries, {"z": b""}]})
    with pytest.raises(InvalidArgument, match=sentence):
        await node.images.import_archive(archive)
    assert node.left() == {}
    assert node.images.images() == []
    assert node.store.ledger.all() == []


POINTS = [
    "images.import.intend", "images.import.put", "content.ingest.create", "content.ingest.rename", "snapshots.unpack.worker",
    "snapshots.commit.rename", "store.intend.commit",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 2])
async def test_failure_at_each_step_of_an_import(node: ImageNode, tmp_path: Path, point: str, nth: int) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app:1": [BASE, {"x": b""}]})
    failpoints.configure(f"{point}={nth}*error")
    try:
        (image,) = await node.images.import_archive(archive)
    except Internal:
        assert node.left() == {}
        assert node.images.images() == []
    else:
        assert nth == 2  # that step is passed only once
        await node.images.remove(image.id)
    assert node.store.ledger.all() == []
    failpoints.configure("")
    assert len(await node.images.import_archive(archive)) == 1


@pytest.mark.parametrize("point", [point for point in POINTS if not point.endswith("put")])
async def test_cancellation_at_each_step_of_an_import(node: ImageNode, tmp_path: Path, point: str) -> None:
    archive = make_oci_layout(tmp_path / "a", {"app:1": [BASE, {"x": b""}]})
    failpoints.configure(f"{point}=hang")
    task = asyncio.create_task(node.images.import_archive(archive))
    while not failpoints._points[point].hits:  # nothing tells that a failpoint was reached, and the way there is through threads
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failpoints.configure("")
    assert node.left() == {}
    assert node.store.ledger.all() == []


async def test_an_image_that_is_being_published_gets_there(node: ImageNode, tmp_path: Path) -> None:
    """A caller that gives up then must not part the record from what is in memory, nor either from the layers."""
    archive = make_oci_layout(tmp_path / "a", {"app:1": [BASE]})
    failpoints.configure("store.put.commit=delay(0.05)")
    task = asyncio.create_task(node.images.import_archive(archive))
    while not failpoints._points["store.put.commit"].hits:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = await node.restarted()
    assert [image.id for image in again.images.images()] == [image.id for image in node.images.images()] != []
    assert again.left() == {"sha256": 2, "layers": 1, "l": 1}
    await again.stop()
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped


async def test_nothing_is_deleted_before_the_record(node: ImageNode, tmp_path: Path) -> None:
    await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:1": [BASE]}))
    failpoints.configure("store.delete.commit=hang")
    task = asyncio.create_task(node.images.remove("app:1"))
    while not failpoints._points["store.delete.commit"].hits:
        await asyncio.sleep(0.001)
    await node.images._collect()  # as the end of an import or of a container does
    assert node.left() == {"sha256": 2, "layers": 1, "l": 1}
    task.cancel()
    await node.images.close(0)


async def test_what_a_crash_leaves_is_gone_after_the_next_start(node: ImageNode, tmp_path: Path) -> None:
    """An import cut off between its last commit of a layer and its record, with an ingest and an unpack under way."""
    await node.store.ledger.intend(Intent(Kind.INGEST, "i1", ""), Intent(Kind.LAYER_UNPACK, "u1", ""))
    (image,) = await node.images.import_archive(make_oci_layout(tmp_path / "a", {"app:1": [BASE]}))
    (node.root / "lib/content/ingest/i1").write_bytes(b"half")
    (node.root / "lib/snapshots/unpack/u1/fs").mkdir(parents=True)
    await node.store.disk_records("images").delete(image.id)
    again = await node.restarted()
    await again.releases.release(again.store.ledger.all())
    await again.stop()
    assert again.left() == {}
    assert again.store.ledger.all() == []
    node.stop = again.stop  # type: ignore[method-assign]  # it is stopped
