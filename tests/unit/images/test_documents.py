from __future__ import annotations

import json
from typing import Any

import pytest

from agent.errdefs import InvalidArgument
from agent.images.documents import (
    MAX_LAYERS,
    Descriptor,
    ImageConfig,
    Manifest,
    Platform,
    parse_config,
    parse_docker_manifest,
    parse_document,
    parse_index,
)
from agent.images.platforms import best_match, host_platform

DIGEST = "sha256:" + "a" * 64
OCI = "application/vnd.oci.image"
DESCRIPTOR = {"mediaType": f"{OCI}.config.v1+json", "digest": DIGEST, "size": 1}
LAYER = {"mediaType": f"{OCI}.layer.v1.tar+zstd", "digest": DIGEST, "size": 1}


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_an_image_config() -> None:
    document = parse_config(
        encoded(
            {
                "architecture": "amd64",
                "config": {
                    "User": "1000:50",
                    "Env": ["A=b", "C="],
                    "Entrypoint": ["/e"],
                    "Cmd": None,
                    "Volumes": {"/b": {}, "/a": {}},
                    "WorkingDir": "/w",
                    "Labels": {"x": "y"},
                    "StopSignal": "SIGINT",
                },
                "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            }
        ),
        "config",
    )
    assert document.diff_ids == (DIGEST,)
    assert document.config == ImageConfig(("/e",), (), ("A=b", "C="), "/w", "1000:50", "SIGINT", {"x": "y"}, ("/a", "/b"))
    assert document.config.uid == 1000
    assert document.config.username == ""


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [("", None, ""), ("0", 0, ""), ("www:www", None, "www"), (":50", None, ""), ("²", None, "²"), ("9" * 11, None, "9" * 11)],
)
def test_users(user: str, uid: int | None, name: str) -> None:
    assert (ImageConfig(user=user).uid, ImageConfig(user=user).username) == (uid, name)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no 'rootfs'"),
        (encoded({"rootfs": {"type": "other"}}), "no 'rootfs'"),
        (encoded({"rootfs": {"type": "layers", "diff_ids": ["x"]}}), "not a digest"),
        (encoded({"rootfs": {"type": "layers", "diff_ids": [DIGEST] * (MAX_LAYERS + 1)}}), "more than the 500"),
        (encoded({"rootfs": {"type": "layers", "diff_ids": "x"}}), "not a list"),
        (encoded({"rootfs": {"type": "layers"}, "config": {"Env": [1]}}), "'Env'"),
        (encoded({"rootfs": {"type": "layers"}, "config": {"Env": ["a\0b"]}}), "'Env'"),
        (encoded({"rootfs": {"type": "layers"}, "config": {"User": "\ud800"}}), "'User'"),
        (encoded({"rootfs": {"type": "layers"}, "config": {"Labels": {"a": 1}}}), "'Labels'"),
        (encoded({"rootfs": {"type": "layers"}, "config": {"Volumes": ["/a"]}}), "'Volumes'"),
    ],
)
def test_configs_that_are_refused(document: bytes, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        parse_config(document, "config")


def test_a_manifest() -> None:
    manifest = parse_document(encoded({"config": DESCRIPTOR, "layers": [LAYER]}), "manifest")
    assert isinstance(manifest, Manifest)
    assert manifest.layers == (Descriptor(f"{OCI}.layer.v1.tar+zstd", DIGEST, 1),)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"layers": []}, "descriptor is not an object"),
        ({"config": {**DESCRIPTOR, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "an artifact"),
        ({"config": DESCRIPTOR, "layers": [{**LAYER, "mediaType": f"{OCI}.layer.v1.tar+gzip+encrypted"}]}, "can't be unpacked"),
        ({"config": {**DESCRIPTOR, "digest": "sha256:../../etc/passwd"}}, "not a digest"),
        ({"config": {**DESCRIPTOR, "size": -1}}, "no size"),
        ({"config": {**DESCRIPTOR, "size": "1"}}, "no size"),
        ({"config": DESCRIPTOR, "layers": ["x"]}, "not an object"),
    ],
)
def test_manifests_that_are_refused(document: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        parse_document(encoded(document), "manifest")


@pytest.mark.parametrize("empty", [None, [], {}])
def test_empty_is_empty_as_in_go(empty: Any) -> None:
    config = Descriptor(f"{OCI}.config.v1+json", DIGEST, 1)
    assert parse_document(encoded({"config": DESCRIPTOR, "layers": empty}), "manifest") == Manifest(config, ())
    document: Any = {"rootfs": {"type": "layers", "diff_ids": empty}, "config": empty}
    assert parse_config(encoded(document), "config").config == ImageConfig()


def test_a_docker_manifest() -> None:
    (image,) = parse_docker_manifest(encoded([{"Config": "a.json", "RepoTags": None, "Layers": ["a/layer.tar"]}]), "manifest.json")
    assert (image.config, image.tags, image.layers) == ("a.json", (), ("a/layer.tar",))
    documents: list[Any] = [{}, ["x"], [{"Config": 1}], [{"Layers": [None]}]]
    for document in documents:
        with pytest.raises(InvalidArgument):
            parse_docker_manifest(encoded(document), "manifest.json")


def on(*platforms: str) -> list[Descriptor]:
    entries = [
        {
            **LAYER,
            "digest": f"sha256:{number:064x}",
            "platform": dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False)),
        }
        if platform
        else {**LAYER, "digest": f"sha256:{number:064x}"}
        for number, platform in enumerate(platforms)
    ]
    return list(parse_index(encoded({"manifests": entries}), "index"))


@pytest.mark.parametrize(
    ("host", "platforms", "chosen"),
    [
        (Platform("linux", "amd64"), ["linux/arm64", "linux/amd64"], 1),
        (Platform("linux", "amd64"), ["linux/amd64/v3", "linux/amd64"], 1),
        (Platform("linux", "amd64"), ["linux/amd64/v3"], None),
        (Platform("linux", "amd64"), ["windows/amd64", "unknown/unknown"], None),
        (Platform("linux", "amd64"), ["linux/amd64", "linux/amd64"], 0),
        (Platform("linux", "amd64"), ["", "linux/amd64"], 1),
        (Platform("linux", "amd64"), ["linux/s390x", ""], 1),
        (Platform("linux", "arm64", "v8"), ["linux/arm/v7", "linux/arm64"], 1),
        (Platform("linux", "arm64", "v8"), ["linux/arm64", "linux/arm64/v8"], 1),
        (Platform("linux", "arm", "v7"), ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        (Platform("linux", "arm", "v6"), ["linux/arm/v7", "linux/arm"], 1),
        (Platform("linux", "amd64"), [], None),
        (Platform("linux", "amd64"), ["linux/arm64", "linux/x86_64"], 1),
        (Platform("linux", "amd64"), ["linux/amd64/v2", "linux/amd64/v1"], 1),
        (Platform("linux", "arm64", "v8"), ["linux/aarch64/8"], 0),
        (Platform("linux", "arm", "v7"), ["linux/arm/6"], 0),
    ],
)
def test_the_manifest_for_a_node(host: Platform, platforms: list[str], chosen: int | None) -> None:
    found = best_match(on(*platforms), host)
    assert (None if found is None else int(found.digest[7:], 16)) == chosen


def test_this_node_has_a_platform() -> None:
    assert str(host_platform()).startswith("linux/")
