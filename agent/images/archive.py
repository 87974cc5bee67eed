"""What an image archive holds: an OCI layout, or what `docker save` writes in its old form and its new one.

Read by `agent.images.service`, which unpacks what is found here. An OCI layout wins where an archive is both: it has digests.
https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.aio import in_thread
from agent.content import digest_of, validate_digest
from agent.errdefs import DataLoss, InvalidArgument, NotFound
from agent.images.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    ConfigDocument,
    Descriptor,
    Platform,
    parse_config,
    parse_docker_manifest,
    parse_index,
    parse_manifest,
)
from agent.images.files import ArchiveFiles
from agent.images.platforms import best_match
from agent.images.reference import Reference, parse_reference

_MAX_NESTING = 4
_INDEX = "index.json"
_LAYOUT = "oci-layout"
_DOCKER_MANIFEST = "manifest.json"
_CONTAINERD_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_BARE_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEX = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True)
class LayerSource:
    """A layer as a file of the archive."""

    name: str
    digest: str
    """Of the file; empty in an old `docker save` archive, which has only the diff id to check against."""
    size: int | None
    diff_id: str


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive, with its documents read and verified, and its layers not yet touched."""

    references: tuple[Reference, ...]
    config_data: bytes
    config: ConfigDocument
    manifest_data: bytes
    """Empty in an old `docker save` archive."""
    layers: tuple[LayerSource, ...]

    @property
    def id(self) -> str:
        return digest_of(self.config_data)


async def read_images(files: ArchiveFiles, path: Path, host: Platform) -> list[ArchivedImage]:
    """The images for `host` in the archive.

    Raises:
        InvalidArgument: it is no archive of images, or an image breaks its format.
        DataLoss: a document has another digest than it should.
        NotFound: a document is missing, or nothing is for this platform.
    """
    if await files.size(_LAYOUT) is not None and await files.size(_INDEX) is not None:
        images = await _Layout(files, host).images()
    elif await files.size(_DOCKER_MANIFEST) is not None:
        images = await _docker_images(files)
    else:
        raise InvalidArgument(f"{path} is not an image archive: it has neither '{_LAYOUT}' and '{_INDEX}' nor '{_DOCKER_MANIFEST}'")
    if not images:
        raise NotFound(f"{path} holds no image for {host}")
    return images


class _Layout:
    """An OCI layout."""

    def __init__(self, files: ArchiveFiles, host: Platform) -> None:
        self._files = files
        self._host = host

    async def images(self) -> list[ArchivedImage]:
        index = await in_thread(parse_index, await self._files.read(_INDEX, MAX_DOCUMENT), _INDEX)
        found: dict[str, ArchivedImage] = {}
        for descriptor in index:
            chosen = await self._choose([descriptor], _MAX_NESTING)
            if chosen is None:  # for another platform, or an attestation
                continue
            image = await self._image(chosen, _references(descriptor))
            if (same := found.get(chosen.digest)) is not None:  # one entry per name
                image = ArchivedImage(
                    same.references + image.references, image.config_data, image.config, image.manifest_data, image.layers
                )
            found[chosen.digest] = image
        return list(found.values())

    async def _choose(self, descriptors: Sequence[Descriptor], nesting: int) -> Descriptor | None:
        """The manifest for this node, through nested indexes."""
        known = [descriptor for descriptor in descriptors if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)]
        best = best_match(known, self._host)
        if best is None or best.media_type in MANIFEST_TYPES:
            return best
        if not nesting:
            raise InvalidArgument(f"index {best.digest} lies deeper than {_MAX_NESTING} indexes")
        return await self._choose(await in_thread(parse_index, await self._document(best), f"index {best.digest}"), nesting - 1)

    async def _image(self, descriptor: Descriptor, references: tuple[Reference, ...]) -> ArchivedImage:
        manifest_data = await self._document(descriptor)
        manifest = await in_thread(parse_manifest, manifest_data, f"manifest {descriptor.digest}")
        config_data = await self._document(manifest.config)
        config = await in_thread(parse_config, config_data, f"config {manifest.config.digest}")
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"manifest {descriptor.digest} has {len(manifest.layers)} layers, but its config lists {len(config.diff_ids)}"
            )
        layers = tuple(
            LayerSource(_blob_name(layer.digest), layer.digest, layer.size, diff_id)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        return ArchivedImage(references, config_data, config, manifest_data, layers)

    async def _document(self, descriptor: Descriptor) -> bytes:
        data = await self._files.read(_blob_name(descriptor.digest), MAX_DOCUMENT)
        if len(data) != descriptor.size or digest_of(data) != descriptor.digest:
            raise DataLoss(
                f"blob {descriptor.digest} is damaged: it has the digest {digest_of(data)} and {len(data)} of {descriptor.size} bytes"
            )
        return data


async def _docker_images(files: ArchiveFiles) -> list[ArchivedImage]:
    """What `docker save` wrote before it wrote OCI layouts (and some builders still do)."""
    entries = await in_thread(parse_docker_manifest, await files.read(_DOCKER_MANIFEST, MAX_DOCUMENT), _DOCKER_MANIFEST)
    images = []
    for entry in entries:
        name = posixpath.normpath(entry.config)
        data = await files.read(name, MAX_DOCUMENT)
        # The file is named after the digest, which is all there is to check it by.
        if (named := _HEX.search(posixpath.basename(name))) is not None and digest_of(data) != f"sha256:{named[0]}":
            raise DataLoss(f"{name} is damaged: it has the digest {digest_of(data)}")
        config = await in_thread(parse_config, data, name)
        if len(config.diff_ids) != len(entry.layers):
            raise InvalidArgument(f"{_DOCKER_MANIFEST} names {len(entry.layers)} layers of {name}, which lists {len(config.diff_ids)}")
        layers = tuple(
            LayerSource(posixpath.normpath(layer), "", None, diff_id) for layer, diff_id in zip(entry.layers, config.diff_ids, strict=True)
        )
        images.append(ArchivedImage(tuple(map(parse_reference, entry.tags)), data, config, b"", layers))
    return images


def _references(descriptor: Descriptor) -> tuple[Reference, ...]:
    """The name of a layout's entry. A bare word as ref.name is a tag: which repository it is of, nobody wrote down."""
    name = descriptor.annotations.get(_CONTAINERD_NAME, "")
    if not name and _BARE_TAG.fullmatch(name := descriptor.annotations.get(_REF_NAME, "")):
        name = ""
    return (parse_reference(name),) if name else ()


def _blob_name(digest: str) -> str:
    return f"blobs/{validate_digest(digest).replace(':', '/')}"
