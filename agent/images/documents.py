"""The JSON documents of an image: index, manifest, config. Parsed strictly enough that what comes out can be relied on.

https://github.com/opencontainers/image-spec (image-index.md, manifest.md, config.md); Docker's forms have other media types and
the same fields. Everything raises InvalidArgument with a sentence that names the document. Blocks for large documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.content.digest import ALGORITHM, validate_digest
from agent.errdefs import InvalidArgument

MAX_DOCUMENT = 4 << 20
"""Bytes of one document (distribution-spec: registries should take manifests of 4 MiB)."""
MAX_LAYERS = 500
"""What overlayfs can stack."""

INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_FOREIGN_TYPES = frozenset(
    base + compression
    for base, compressions in {
        "application/vnd.oci.image.layer.nondistributable.v1.tar": ("", "+gzip", "+zstd"),
        "application/vnd.docker.image.rootfs.foreign.diff.tar": ("", ".gzip", ".zstd"),
    }.items()
    for compression in compressions
)
_LAYER_TYPES = _FOREIGN_TYPES | frozenset(
    base + compression
    for base, compressions in {
        "application/vnd.oci.image.layer.v1.tar": ("", "+gzip", "+zstd"),
        "application/vnd.docker.image.rootfs.diff.tar": ("", ".gzip", ".zstd"),
    }.items()
    for compression in compressions
)

JSONObject = Mapping[str, Any]


@dataclass(frozen=True)
class Platform:
    """What an image runs on, in Go's words."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    """Where else it can be had; of interest for non-distributable layers alone."""

    @property
    def is_manifest(self) -> bool:
        """Or an index: what a registry keeps among its manifests."""
        return self.media_type in (*INDEX_TYPES, *MANIFEST_TYPES)

    @property
    def distributable(self) -> bool:
        """Whether registries may keep it. Layers with somebody's licence on them may be had from their maker only."""
        return self.media_type not in _FOREIGN_TYPES


@dataclass(frozen=True)
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageConfig:
    """How the image wants to be run: defaults for what a container's own config leaves out."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    """"NAME=value" each."""
    working_dir: str = ""
    user: str = ""
    """"user", "uid", "user:group", "uid:gid" ..., as written."""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()

    @property
    def uid(self) -> int | None:
        """The user, if it is a number; CRI's Image.uid."""
        user = self.user.partition(":")[0]
        return int(user) if user.isdecimal() and len(user) <= 10 else None

    @property
    def username(self) -> str:
        """The user, if it is a name; CRI's Image.username."""
        return "" if self.uid is not None else self.user.partition(":")[0]


@dataclass(frozen=True)
class ConfigDocument:
    """An image's config blob."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform | None
    """None if it doesn't say."""


def parse_index(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """The descriptors of an index (or of a layout's index.json, or of Docker's manifest list)."""
    return tuple(_descriptor(entry, what) for entry in _list(_object(data, what), "manifests", what))


def parse_document(data: bytes, what: str, media_type: str = "") -> tuple[Descriptor, ...] | Manifest:
    """An index (its descriptors) or a manifest of an image, whichever it is; `media_type` is what somebody else calls it.

    What could be read as both is refused, or a signature of the one would cover the other (CVE-2021-41190).
    """
    document = _object(data, what)
    own_type = _string(document, "mediaType", what)
    if "fsLayers" in document or document.get("schemaVersion") == 1:
        raise InvalidArgument(f"{what} is in Docker's schema 1, which nothing builds any more; push the image again with a present tool")
    is_index = "manifests" in document
    types = INDEX_TYPES if is_index else MANIFEST_TYPES
    if (own_type and own_type not in types) or (is_index and not {"config", "layers"}.isdisjoint(document)):
        raise InvalidArgument(
            f"{what} contradicts itself, or is no image: its type is {own_type[:100]!r}, its fields {sorted(document)}"[:400]
        )
    if media_type not in types and media_type in (*INDEX_TYPES, *MANIFEST_TYPES):
        raise InvalidArgument(f"{what} is given out as {media_type!r}, which it is not")
    if is_index:
        return tuple(_descriptor(entry, what) for entry in _list(document, "manifests", what))
    return _manifest(document, what)


def _manifest(document: JSONObject, what: str) -> Manifest:
    config = _descriptor(document.get("config"), what)
    if config.media_type not in _CONFIG_TYPES:
        raise InvalidArgument(f"{what} is not an image but an artifact: its config has the type {config.media_type[:100]!r}")
    layers = tuple(_descriptor(entry, what) for entry in _list(document, "layers", what))
    for layer in layers:
        if layer.media_type not in _LAYER_TYPES:
            raise InvalidArgument(f"{what}: a layer has the type {layer.media_type[:100]!r}, which can't be unpacked")
    return Manifest(config, layers)


def parse_config(data: bytes, what: str) -> ConfigDocument:
    """A config blob."""
    document = _object(data, what)
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise InvalidArgument(f"{what} has no 'rootfs' of type 'layers'")
    diff_ids = _strings(rootfs, "diff_ids", what)
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidArgument(f"{what} has {len(diff_ids)} layers, more than the {MAX_LAYERS} that overlayfs can stack")
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise InvalidArgument(f"{what}: 'config' is not an object")
    return ConfigDocument(
        ImageConfig(
            entrypoint=_strings(config, "Entrypoint", what),
            cmd=_strings(config, "Cmd", what),
            env=_strings(config, "Env", what),
            working_dir=_string(config, "WorkingDir", what),
            user=_string(config, "User", what),
            stop_signal=_string(config, "StopSignal", what),
            labels=_string_map(config, "Labels", what),
            volumes=tuple(sorted(_mapping(config, "Volumes", what))),
        ),
        tuple(validate_digest(diff_id, (ALGORITHM,)) for diff_id in diff_ids),
        _platform(document, what) if document.get("os") and document.get("architecture") else None,
    )


@dataclass(frozen=True)
class DockerImage:
    """One entry of a `docker save` archive's manifest.json; the names are paths in the archive."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


def parse_docker_manifest(data: bytes, what: str) -> tuple[DockerImage, ...]:
    entries = _json(data, what)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidArgument(f"{what} is not a list of images")
    return tuple(
        DockerImage(_string(entry, "Config", what), _strings(entry, "RepoTags", what), _strings(entry, "Layers", what)) for entry in entries
    )


def _descriptor(value: Any, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what}: a descriptor is not an object")
    size = value.get("size")
    if not isinstance(size, int) or size < 0:
        raise InvalidArgument(f"{what}: a descriptor has no size")
    platform = value.get("platform")
    return Descriptor(
        _string(value, "mediaType", what),
        validate_digest(_string(value, "digest", what)),
        size,
        _string_map(value, "annotations", what),
        _platform(platform, what) if isinstance(platform, dict) else None,
        _strings(value, "urls", what),
    )


def _platform(document: JSONObject, what: str) -> Platform:
    return Platform(_string(document, "os", what), _string(document, "architecture", what), _string(document, "variant", what))


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error}") from error


def _object(data: bytes, what: str) -> JSONObject:
    value = _json(data, what)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} is not a JSON object")
    return value


def _list(document: JSONObject, key: str, what: str) -> list[Any]:
    value = document.get(key) or []  # absent and null mean empty, in Go's way
    if not isinstance(value, list):
        raise InvalidArgument(f"{what}: {key!r} is not a list")
    return value


def _string(document: JSONObject, key: str, what: str) -> str:
    value = document.get(key) or ""
    if not _is_text(value):
        raise InvalidArgument(f"{what}: {key!r} is not a string")
    return value


def _strings(document: JSONObject, key: str, what: str) -> tuple[str, ...]:
    values = _list(document, key, what)
    if not all(map(_is_text, values)):
        raise InvalidArgument(f"{what}: {key!r} is not a list of strings")
    return tuple(values)


def _mapping(document: JSONObject, key: str, what: str) -> JSONObject:
    value = document.get(key) or {}
    if not isinstance(value, dict) or not all(map(_is_text, value)):
        raise InvalidArgument(f"{what}: {key!r} is not an object")
    return value


def _string_map(document: JSONObject, key: str, what: str) -> dict[str, str]:
    value = _mapping(document, key, what)
    if not all(map(_is_text, value.values())):
        raise InvalidArgument(f"{what}: {key!r} has values that are not strings")
    return dict(value)


def _is_text(value: Any) -> bool:
    """A string that can be a C string and a protobuf string: no zero byte, no half of a surrogate pair."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
