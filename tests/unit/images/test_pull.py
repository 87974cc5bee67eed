"""Images from a registry: what is brought in, what is refused, and that nothing is left of what failed or was given up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from agent.errdefs import (
    DataLoss,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from agent.images.documents import Platform
from tests.images import ARCHITECTURE, OCI, Blobs, add_image, digest, gzipped, layer_tar
from tests.unit.images.node import BASE, NOISE, ImageNode, nothing_left
from tests.unit.registry.fake import INDEX, MANIFEST, FakeRegistry, Reply


async def test_by_tag_and_by_digest(node: ImageNode, registry: FakeRegistry) -> None:
    manifest = registry.add_image("org/app", [BASE, {"more": b""}], "v1", config={"Cmd": ["/bin/sh"]})
    image = await node.images.pull(f"{registry.domain}/org/app:v1")
    assert image.tags == (f"{registry.domain}/org/app:v1",)
    assert image.digests == (f"{registry.domain}/org/app@{manifest}",)
    assert image.config.cmd == ("/bin/sh",)
    assert await node.images.read_file(image.id, "/etc/passwd") == b"root:x:0:0"
    assert node.left() == {"sha256": 2, "layers": 2, "l": 2}
    assert node.store.ledger.all() == []
    registry.seen.clear()
    assert await node.images.pull(f"{registry.domain}/org/app@{manifest}") == image
    assert await node.images.pull(f"{registry.domain}/org/app:v1") == image
    assert [seen.method for seen in registry.seen] == ["HEAD", "HEAD"]  # the registry has its say; nothing is fetched twice


async def test_a_digest_decides_over_the_tag_beside_it(node: ImageNode, registry: FakeRegistry) -> None:
    manifest = registry.add_image("app", [BASE])
    image = await node.images.pull(f"{registry.domain}/app:other@{manifest}")
    assert image.tags == ()
    assert image.digests == (f"{registry.domain}/app@{manifest}",)


async def test_a_tag_that_has_moved(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE], "v1")
    old = await node.images.pull(f"{registry.domain}/app:v1")
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    new = await node.images.pull(f"{registry.domain}/app:v1")
    assert node.images.resolve(f"{registry.domain}/app:v1") == new
    assert node.images.resolve(old.id).tags == ()
    assert len(node.runner.unpacked) == 2  # the base is shared
    await node.images.remove(old.id)
    await node.images.remove(new.id)
    nothing_left(node)


@pytest.mark.parametrize("docker", [False, True])
async def test_an_index_by_platform(node: ImageNode, registry: FakeRegistry, docker: bool) -> None:
    def build(blobs: Blobs) -> dict[str, Any]:
        ours = {**add_image(blobs, [layer_tar(BASE)]), "platform": {"os": "linux", "architecture": ARCHITECTURE}}
        theirs = {**add_image(blobs, [layer_tar({"x": b""})]), "platform": {"os": "linux", "architecture": "vax"}}
        attestation = {**ours, "digest": "sha256:" + "0" * 64, "platform": {"os": "unknown", "architecture": "unknown"}}
        media_type = "application/vnd.docker.distribution.manifest.list.v2+json" if docker else INDEX
        return blobs.add_json({"schemaVersion": 2, "mediaType": media_type, "manifests": [attestation, theirs, ours]}, media_type)

    index = registry.add_blobs("app", build, "v1")
    image = await node.images.pull(f"{registry.domain}/app:v1")
    assert image.digests == (f"{registry.domain}/app@{index}",)
    assert len(image.manifests) == 2
    assert node.images.find(f"{registry.domain}/app@{index}") == image
    with pytest.raises(NotFound, match=f"^image .*/app:v1 is not built for linux/pdp11, but for linux/vax, linux/{ARCHITECTURE}$"):
        await node.images.pull(f"{registry.domain}/app:v1", platform=Platform("linux", "pdp11"))
    await node.images.remove(image.id)
    nothing_left(node)


@pytest.mark.parametrize(
    ("host", "chosen"),
    [
        (Platform("linux", "arm", "v7"), "arm/v7"),
        (Platform("linux", "arm", "v6"), "arm/v6"),
        (Platform("linux", "arm64", "v8"), "arm64"),
        (Platform("linux", "amd64"), "amd64"),
    ],
)
async def test_an_index_with_variants(node: ImageNode, registry: FakeRegistry, host: Platform, chosen: str) -> None:
    def build(blobs: Blobs) -> dict[str, Any]:
        manifests = []
        for name in ("amd64/v3", "amd64", "arm/v5", "arm/v7", "arm/v6", "arm64"):
            architecture, _, variant = name.partition("/")
            top = add_image(blobs, [layer_tar({name: b""})])
            manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
            document = json.loads(blobs.files.pop("blobs/" + manifest["config"]["digest"].replace(":", "/")))
            platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
            document.update(platform, config={"Labels": {"for": name}})
            manifest["config"] = blobs.add_json(document, manifest["config"]["mediaType"])
            manifests.append({**blobs.add_json(manifest, MANIFEST), "platform": platform})
        return blobs.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)

    registry.add_blobs("app", build, "v1")
    image = await node.images.pull(f"{registry.domain}/app:v1", platform=host)
    assert image.config.labels == {"for": chosen}


async def test_a_manifest_for_another_platform(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE], "v1")
    with pytest.raises(NotFound, match=f"not built for linux/vax, but for linux/{ARCHITECTURE}$"):
        await node.images.pull(f"{registry.domain}/app:v1", platform=Platform("linux", "vax"))
    nothing_left(node)


DOCKER = "application/vnd.docker"


@pytest.mark.parametrize(
    ("layer_type", "compress"),
    [
        (f"{OCI}.layer.v1.tar+zstd", zstandard.ZstdCompressor().compress),
        (f"{OCI}.layer.v1.tar", bytes),
        (f"{DOCKER}.image.rootfs.diff.tar.gzip", gzipped),
        (f"{DOCKER}.image.rootfs.diff.tar", bytes),
        # What is said of the compression counts for nothing: many a builder has it wrong.
        (f"{OCI}.layer.v1.tar+gzip", zstandard.ZstdCompressor().compress),
        (f"{OCI}.layer.v1.tar+zstd", gzipped),
        (f"{OCI}.layer.v1.tar", gzipped),
    ],
)
async def test_kinds_of_layers(node: ImageNode, registry: FakeRegistry, layer_type: str, compress: Callable[[bytes], bytes]) -> None:
    def build(blobs: Blobs) -> dict[str, Any]:
        layers = [layer_tar(BASE), layer_tar({}), layer_tar({})]  # two of them empty, and the same
        top = add_image(blobs, layers, compress=compress)
        manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
        for layer in manifest["layers"]:
            layer["mediaType"] = layer_type
        if layer_type.startswith(DOCKER):
            manifest["config"]["mediaType"] = f"{DOCKER}.container.image.v1+json"
            manifest["mediaType"] = f"{DOCKER}.distribution.manifest.v2+json"
        return blobs.add_json(manifest, manifest["mediaType"])

    registry.add_blobs("app", build, "v1")
    image = await node.images.pull(f"{registry.domain}/app:v1")
    assert len(image.layers) == 3
    assert await node.images.read_file(image.id, "/bin/sh") == b"#!"


@pytest.mark.parametrize("canonical", [True, False])
async def test_digests_by_sha512(node: ImageNode, registry: FakeRegistry, canonical: bool) -> None:
    """Of the manifest, the config and a layer. The registry may know the manifest by another one as well."""

    def sha512(data: bytes) -> str:
        return f"sha512:{hashlib.sha512(data).hexdigest()}"

    def build(blobs: Blobs) -> dict[str, Any]:
        top = add_image(blobs, [layer_tar(BASE)])
        manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
        for descriptor in (manifest["config"], *manifest["layers"]):
            data = blobs.files.pop("blobs/" + descriptor["digest"].replace(":", "/"))
            descriptor["digest"] = sha512(data)
            registry.blobs[descriptor["digest"]] = data
        return blobs.add_json(manifest, MANIFEST)

    data, _ = registry.manifests[f"app@{registry.add_blobs('app', build)}"]
    name = f"{registry.domain}/app@{sha512(data)}"
    headers = {"Content-Type": MANIFEST, "Docker-Content-Digest": digest(data) if canonical else sha512(data)}
    registry.rule(Reply(200, data, headers), path=f"/manifests/{sha512(data)}")
    image = await node.images.pull(name)
    assert image.digests == (name,)
    assert node.images.find(name) == image
    assert await node.images.read_file(image.id, "/bin/sh") == b"#!"
    assert await node.images.pull(name) == image
    restarted = await node.restarted()
    assert restarted.images.find(name) is not None
    await restarted.images.remove(image.id)
    nothing_left(restarted)
    bad = next(name for name in registry.blobs if len(registry.blobs[name]) > 100 and b"rootfs" not in registry.blobs[name])
    registry.blobs[bad] = flipped(registry.blobs[bad])
    with pytest.raises(DataLoss, match="has the digest sha512:"):
        await restarted.images.pull(name)
    await restarted.stop()


async def test_an_image_without_layers(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [], "v1")
    image = await node.images.pull(f"{registry.domain}/app:v1")
    assert (image.layers, image.chain_id) == ((), "")


async def test_a_foreign_layer(node: ImageNode, registry: FakeRegistry) -> None:
    async with FakeRegistry() as maker:

        def build(blobs: Blobs) -> dict[str, Any]:
            top = add_image(blobs, [layer_tar(BASE)])
            manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
            (layer,) = manifest["layers"]
            maker.blobs[layer["digest"]] = blobs.files.pop("blobs/" + layer["digest"].replace(":", "/"))
            layer["mediaType"] = f"{OCI}.layer.nondistributable.v1.tar+gzip"
            layer["urls"] = [f"http://{maker.domain}/blobs/{layer['digest']}"]
            return blobs.add_json(manifest, MANIFEST)

        registry.add_blobs("app", build, "v1")
        image = await node.images.pull(f"{registry.domain}/app:v1")
        assert await node.images.read_file(image.id, "/bin/sh") == b"#!"


async def test_an_ordinary_layer_is_never_fetched_from_outside(node: ImageNode, registry: FakeRegistry) -> None:
    async with FakeRegistry() as elsewhere:

        def build(blobs: Blobs) -> dict[str, Any]:
            top = add_image(blobs, [layer_tar(BASE)])
            manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
            manifest["layers"][0]["urls"] = [f"http://{elsewhere.domain}/metadata"]
            del blobs.files["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")]
            return blobs.add_json(manifest, MANIFEST)

        registry.add_blobs("app", build, "v1")
        with pytest.raises(NotFound, match="has no blob"):
            await node.images.pull(f"{registry.domain}/app:v1")
        assert elsewhere.seen == []


# What is wrong


def document(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


CONFIG = {"mediaType": f"{OCI}.config.v1+json", "digest": digest(b"{}"), "size": 2}


@pytest.mark.parametrize(
    ("data", "media_type", "error", "sentence"),
    [
        (b"<html>", "text/html", InvalidArgument, "not JSON"),
        (document(manifests=[], layers=[]), INDEX, InvalidArgument, "contradicts itself"),
        (document(mediaType=MANIFEST, manifests=[]), MANIFEST, InvalidArgument, "contradicts itself"),
        (document(manifests=[]), MANIFEST, InvalidArgument, "given out as 'application/vnd.oci.image.manifest"),
        (document(config=CONFIG, layers=[]), INDEX, InvalidArgument, "given out as 'application/vnd.oci.image.index"),
        (document(mediaType="application/vnd.other+json", config=CONFIG), "", InvalidArgument, "or is no image"),
        (document(schemaVersion=1, fsLayers=[]), "", InvalidArgument, "schema 1"),
        (document(config={**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}), MANIFEST, InvalidArgument, "an artifact"),
        (document(config={**CONFIG, "size": 10 << 30}), MANIFEST, InvalidArgument, "has 10737418240 bytes, more than"),
        (document(config=CONFIG), MANIFEST, InvalidArgument, "no 'rootfs'"),
        (
            document(config={**CONFIG, "digest": "md5:1"}),
            MANIFEST,
            InvalidArgument,
            "form sha256:<64 hex digits> or sha512:<128 hex digits>",
        ),
        (document(config={**CONFIG, "size": 3}), MANIFEST, DataLoss, "comes with 2 bytes, its manifest says 3"),
        (document(manifests=[]), INDEX, NotFound, "nor for any other platform"),
        (document(manifests=[{"mediaType": MANIFEST, "digest": digest(b"{"), "size": 9}]), INDEX, DataLoss, "is damaged"),
    ],
)
async def test_documents_that_are_wrong(
    node: ImageNode, registry: FakeRegistry, data: bytes, media_type: str, error: type[OrlopError], sentence: str
) -> None:
    registry.blobs[digest(b"{}")] = b"{}"
    registry.add_manifest("app", b"{", MANIFEST)
    registry.add_manifest("app", data, media_type, "v1")
    with pytest.raises(error, match=sentence):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_an_index_in_itself_over_and_over(node: ImageNode, registry: FakeRegistry) -> None:
    data = document(manifests=[])
    for _ in range(9):
        inner = {"mediaType": INDEX, "digest": registry.add_manifest("app", data, INDEX), "size": len(data)}
        data = document(manifests=[inner])
    registry.add_manifest("app", data, INDEX, "v1")
    with pytest.raises(InvalidArgument, match="more than 4 deep"):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_more_layers_than_the_config_knows(node: ImageNode, registry: FakeRegistry) -> None:
    def build(blobs: Blobs) -> dict[str, Any]:
        top = add_image(blobs, [layer_tar(BASE)])
        manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
        return blobs.add_json({**manifest, "layers": manifest["layers"] * 2}, MANIFEST)

    registry.add_blobs("app", build, "v1")
    with pytest.raises(InvalidArgument, match="has 2 layers, but its config lists 1"):
        await node.images.pull(f"{registry.domain}/app:v1")


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (lambda data: Reply(200, flipped(data)), DataLoss, "has the digest"),
        (lambda data: Reply(404), NotFound, "has no blob"),
        (lambda data: Reply(200, data, cut=len(data) // 2), Unavailable, "connection broke"),
        (lambda data: Reply(403), PermissionDenied, "refuses blob"),
    ],
)
async def test_a_layer_that_does_not_come(
    node: ImageNode, registry: FakeRegistry, reply: Callable[[bytes], Reply], error: type[OrlopError], sentence: str
) -> None:
    registry.add_image("app", [BASE, {"big": NOISE[:99_999]}, {"x": b""}], "v1")
    bad = max(registry.blobs, key=lambda name: len(registry.blobs[name]))
    registry.rule(reply(registry.blobs[bad]), path=bad)
    with pytest.raises(error, match=sentence):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_a_layer_that_is_not_what_the_config_says(node: ImageNode, registry: FakeRegistry) -> None:
    def build(blobs: Blobs) -> dict[str, Any]:
        top = add_image(blobs, [layer_tar(BASE)])
        manifest = json.loads(blobs.files.pop("blobs/" + top["digest"].replace(":", "/")))
        manifest["layers"] = [blobs.add(layer_tar({"x": b""}), f"{OCI}.layer.v1.tar")]
        return blobs.add_json(manifest, MANIFEST)

    registry.add_blobs("app", build, "v1")
    with pytest.raises(DataLoss, match="the image's config says"):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_a_full_disk_in_the_middle_of_a_layer(node: ImageNode, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add_image("app", [BASE, {"big": NOISE}], "v1")
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 100_000 and "/ingest/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhausted, match=r"ingest could not be written: the disk is full \(No space left on device\)"):
        await node.images.pull(f"{registry.domain}/app:v1")
    monkeypatch.undo()
    nothing_left(node)
    await node.images.pull(f"{registry.domain}/app:v1")


@pytest.mark.parametrize("name", ["App", "", "a b", "a" * 64, "app@sha256:1"])
async def test_names_that_are_none(node: ImageNode, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await node.images.pull(name)


async def test_a_hosts_file_that_is_wrong(node: ImageNode, registry: FakeRegistry) -> None:
    (node.root / "certs.d/reg.test").mkdir(parents=True)
    (node.root / "certs.d/reg.test/hosts.toml").write_text("mirror = 1")
    with pytest.raises(InvalidArgument, match=r"reg\.test/hosts\.toml: mirror = 1: there is no such key"):
        await node.images.pull("reg.test/app")
    nothing_left(node)
