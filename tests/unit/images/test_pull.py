"""Images from a registry: what is brought in, what is refused, and that nothing is left of what failed or was given up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from prometheus_client import generate_latest

from agent import failpoints, metrics
from agent.errdefs import (
    DataLoss,
    Internal,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from agent.images.documents import Platform
from agent.images.progress import Phase
from agent.registry import Credentials
from tests.images import ARCHITECTURE, OCI, Blobs, add_image, digest, gzipped, layer_tar
from tests.unit.images.node import ImageNode
from tests.unit.registry.fake import INDEX, MANIFEST, FakeRegistry, Reply, Seen, basic, demand

BASE = {"etc/passwd": b"root:x:0:0", "bin/sh": b"#!"}
NOISE = os.urandom(3 << 20)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


def nothing_left(node: ImageNode) -> None:
    assert node.left() == {}
    assert node.images.images() == []
    assert node.images.pulls() == []
    assert node.store.ledger.all() == []


async def until(condition: Callable[[], Any]) -> None:
    """What happens behind sockets and threads tells nobody when it has."""
    while not condition():
        await asyncio.sleep(0.001)


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
    with pytest.raises(ResourceExhausted, match=r"the disk of .* is full"):
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


# Several at once


async def test_equal_pulls_are_one(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "latest")
    names = [f"{registry.domain}/app", f"{registry.domain}/app:latest"] * 2
    images = await asyncio.gather(*map(node.images.pull, names))
    assert len(set(map(id, images))) == 1
    assert len(registry.requests("HEAD")) == 1
    assert len(node.runner.unpacked) == 2


async def test_other_credentials_are_another_pull(node: ImageNode, registry: FakeRegistry) -> None:
    """Who may not have the image must not get it because somebody else is pulling it."""
    registry.add_image("app", [BASE], "v1")

    def guard(seen: Seen) -> Reply | None:
        return None if seen.headers.get("authorization") == "Bearer good" else Reply(401, headers={"WWW-Authenticate": "Bearer realm=x"})

    registry.rule(guard)
    name = f"{registry.domain}/app:v1"
    good, bad = Credentials(registry_token="good"), Credentials(registry_token="bad")
    outcomes = await asyncio.gather(*(node.images.pull(name, one) for one in (good, bad, good)), return_exceptions=True)
    assert isinstance(outcomes[1], PermissionDenied)
    assert outcomes[0] is outcomes[2]
    for by in (name, node.images.resolve(name).digests[0]):  # nor because it is here already
        with pytest.raises(PermissionDenied):
            await node.images.pull(by, bad)


async def test_credentials_are_written_nowhere(node: ImageNode, registry: FakeRegistry, capfd: pytest.CaptureFixture[str]) -> None:
    """Not to the log, a metric, the ledger, a record or any other file, be it that the pull works or not."""
    registry.add_image("app", [BASE], "v1")
    secrets = Credentials(username="me", password="s3cret", identity_token="refr3sh")
    registry.rule(Reply(200, b'{"token": "gr4nted"}'), path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer gr4nted"))
    await node.images.pull(f"{registry.domain}/app:v1", secrets)
    registry.rules.clear()
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer gr4nted"))
    registry.rule(lambda seen: Reply(403, json.dumps({"errors": [{"message": str(seen)}]}).encode()), path="/manifests/v2")
    for name in ("app:v1", "app:v2"):
        with pytest.raises(OrlopError):
            await node.images.pull(f"{registry.domain}/{name}", secrets)
    written = [path.read_bytes() for path in node.root.rglob("*") if path.is_file()]
    shown = "".join(capfd.readouterr())
    assert "image pulled" in shown
    everything = b"".join([*written, shown.encode(), generate_latest(metrics.registry)])
    for secret in (b"s3cret", b"refr3sh", b"gr4nted", basic(secrets).partition(" ")[2].encode()):
        assert secret not in everything


def hold_layers(registry: FakeRegistry) -> None:
    """Downloads begin, and don't end."""

    def hold(seen: Seen) -> Reply | None:
        blob = registry.blobs.get(seen.path.rpartition("/")[2], b"")
        return Reply(200, blob, stall=len(blob) // 2) if len(blob) > 100_000 else None

    registry.rule(hold, path="/blobs/")


async def test_one_of_two_callers_gives_up(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    name = f"{registry.domain}/app:v1"
    first, second = (asyncio.create_task(node.images.pull(name)) for _ in range(2))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(node.images.pulls()) == 1
    third = asyncio.create_task(node.images.pull(name))
    await asyncio.sleep(0)
    for task in (second, third):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    nothing_left(node)  # by the time that the last one returns
    registry.rules.clear()
    assert (await node.images.pull(name)).tags == (name,)


async def test_who_comes_while_a_pull_is_being_given_up_gets_one_of_its_own(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    name = f"{registry.domain}/app:v1"
    first = asyncio.create_task(node.images.pull(name))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    registry.rules.clear()
    first.cancel()
    await asyncio.sleep(0)
    second = await node.images.pull(name)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert node.images.images() == [second]
    assert node.store.ledger.all() == []


async def test_another_pull_takes_over_a_layer_that_was_given_up(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    registry.add_image("app", [{"big": NOISE}, {"x": b""}], "v2")
    hold_layers(registry)
    first = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    second = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v2"))
    await until(lambda: [layer.phase for pull in node.images.pulls()[1:] for layer in pull.layers][:1] == [Phase.WAITING])
    registry.rules.clear()
    first.cancel()
    assert len((await second).layers) == 2
    assert [image.tags for image in node.images.images()] == [(f"{registry.domain}/app:v2",)]


async def test_an_image_that_is_removed_while_it_is_pulled_again(node: ImageNode, registry: FakeRegistry) -> None:
    manifest = registry.add_image("app", [BASE])
    name = f"{registry.domain}/app@{manifest}"
    image = await node.images.pull(name)
    registry.gates["HEAD"] = asyncio.Event()
    pull = asyncio.create_task(node.images.pull(name))
    await until(lambda: registry.requests("HEAD"))
    await node.images.remove(name)
    registry.gates["HEAD"].set()
    assert await pull == image
    await node.images.remove(name)
    nothing_left(node)


async def test_what_a_running_pull_has_already_stays_whatever_is_removed_beside_it(node: ImageNode, registry: FakeRegistry) -> None:
    """Its documents, and the layer that it shares with an image that goes; nothing refers to either yet."""
    registry.add_image("old", [BASE], "v1")
    registry.add_image("app", [BASE, {"big": NOISE}], "v1")
    old, app = (f"{registry.domain}/{name}:v1" for name in ("old", "app"))
    await node.images.pull(old)
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(app))
    await until(lambda: any(layer.offset for running in node.images.pulls() for layer in running.layers))
    await until(lambda: len(node.content.list()) == 4)  # config and manifest of each
    before = node.content.list()
    await node.images.remove(old)
    await node.images._collect()  # as the end of a container does
    assert node.content.list() == before
    assert node.below("snapshots/layers") == 1
    registry.rules.clear()
    pull.cancel()
    await asyncio.wait([pull])
    nothing_left(node)  # with the last pull goes what only it has kept


async def test_limits(tmp_path: Path, registry: FakeRegistry) -> None:
    node = await ImageNode(tmp_path, parallel_pulls=1).start()
    for app in ("one", "two"):
        registry.add_image(app, [{f"{app}{number}": NOISE[: 200_000 + number]} for number in range(6)], "v1")
    hold_layers(registry)
    pulls = [asyncio.create_task(node.images.pull(f"{registry.domain}/{app}:v1")) for app in ("one", "two")]
    await until(lambda: registry.busy == 3)
    await asyncio.sleep(0.02)  # enough for a fourth to come, if any did
    assert registry.busy == 3
    assert len(node.images.pulls()) == 2
    assert [len(pull.layers) for pull in node.images.pulls()] == [6, 0]
    for pull in pulls:
        pull.cancel()
    await asyncio.wait(pulls)
    nothing_left(node)
    await node.stop()


async def test_the_agent_stops(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    await node.images.stop_pulls()
    with pytest.raises(Unavailable, match=r"pull of .*/app:v1 is given up: the agent stops"):
        await pull
    with pytest.raises(Unavailable, match="is not begun"):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_progress(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE, {"big": NOISE}], "v1")
    registry.add_image("base", [BASE], "v1")
    await node.images.pull(f"{registry.domain}/base:v1")
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    (progress,) = node.images.pulls()
    assert progress.name == f"{registry.domain}/app:v1"
    here, coming = progress.layers
    assert (here.phase, coming.phase) == (Phase.DONE, Phase.DOWNLOADING)
    assert 0 < coming.offset < coming.size == len(registry.blobs[coming.digest])
    pull.cancel()
    await asyncio.wait([pull])
    assert node.images.pulls() == []


# Every step


POINTS = [
    "store.intend.commit", "images.import.intend", "content.ingest.create", "content.ingest.rename", "snapshots.unpack.worker",
    "snapshots.commit.rename", "images.import.put",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 2])
async def test_failure_at_each_step(node: ImageNode, registry: FakeRegistry, point: str, nth: int) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    failpoints.configure(f"{point}={nth}*error")
    try:
        image = await node.images.pull(f"{registry.domain}/app:v1")
    except Internal:
        nothing_left(node)
    else:
        assert nth == 2  # that step is passed only once
        await node.images.remove(image.id)
    failpoints.configure("")
    assert await node.images.pull(f"{registry.domain}/app:v1")


@pytest.mark.parametrize("point", [point for point in POINTS if not point.endswith("put")])
async def test_cancellation_at_each_step(node: ImageNode, registry: FakeRegistry, point: str) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    failpoints.configure(f"{point}=hang")
    task = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: point in failpoints.passed())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failpoints.configure("")
    nothing_left(node)
