"""What an image archive holds: an OCI layout, or what `docker save` writes in its old form and its new one.

Read by `agent.images.service`, which unpacks what is found here. An OCI layout wins where an archive is both: it has digests.
https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import posixpath
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from agent.aio import in_thread
from agent.content import ContentStore, digest_of, validate_digest
from agent.errdefs import DataLoss, InvalidArgument, NotFound
from agent.images.documents import (
    MAX_DOCUMENT,
    Descriptor,
    Platform,
    parse_config,
    parse_docker_manifest,
    parse_index,
)
from agent.images.files import ArchiveFiles
from agent.images.incoming import IncomingImage, LayerSource, OtherPlatforms, read_image
from agent.images.platforms import best_match
from agent.images.reference import Reference, parse_reference

_INDEX = "index.json"
_LAYOUT = "oci-layout"
_DOCKER_MANIFEST = "manifest.json"
_CONTAINERD_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_BARE_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEX = re.compile(r"[a-f0-9]{64}")


class ArchiveLayers:
    """The layers of images that `read_images` found in `files`."""

    def __init__(self, files: ArchiveFiles, content: ContentStore) -> None:
        self._files = files
        self._content = content

    def staged(self, layer: LayerSource, key: str) -> AbstractAsyncContextManager[Path]:
        return self._content.staged(self._files.stream(layer.name), key, layer.digest, layer.size)


async def read_images(files: ArchiveFiles, path: Path, host: Platform) -> list[IncomingImage]:
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

    async def images(self) -> list[IncomingImage]:
        index = await in_thread(parse_index, await self._files.read(_INDEX, MAX_DOCUMENT), _INDEX)
        found: dict[str, IncomingImage] = {}
        for descriptor in index:
            if not descriptor.is_manifest or best_match([descriptor], self._host) is None:
                continue  # an attestation, or for another platform
            try:
                image = await read_image(descriptor, self._host, _references(descriptor), self._document)
            except OtherPlatforms:
                continue
            if (same := found.get(descriptor.digest)) is not None:  # one entry per name
                image = replace(same, references=same.references + image.references)
            found[descriptor.digest] = image
        return [replace(image, layers=tuple(map(_in_layout, image.layers))) for image in found.values()]

    async def _document(self, descriptor: Descriptor) -> bytes:
        return await self._files.read(_blob_name(descriptor.digest), MAX_DOCUMENT)


def _in_layout(layer: LayerSource) -> LayerSource:
    return replace(layer, name=_blob_name(layer.digest))


async def _docker_images(files: ArchiveFiles) -> list[IncomingImage]:
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
            LayerSource("", None, diff_id, name=posixpath.normpath(layer))
            for layer, diff_id in zip(entry.layers, config.diff_ids, strict=True)
        )
        images.append(IncomingImage(tuple(map(parse_reference, entry.tags)), "", (), data, config, layers))
    return images


def _references(descriptor: Descriptor) -> tuple[Reference, ...]:
    """The name of a layout's entry. A bare word as ref.name is a tag: which repository it is of, nobody wrote down."""
    name = descriptor.annotations.get(_CONTAINERD_NAME, "")
    if not name and _BARE_TAG.fullmatch(name := descriptor.annotations.get(_REF_NAME, "")):
        name = ""
    return (parse_reference(name),) if name else ()


def _blob_name(digest: str) -> str:
    return f"blobs/{validate_digest(digest).replace(':', '/')}"
