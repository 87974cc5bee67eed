"""An image on its way in: its documents read and checked, its layers not yet touched. From an archive or from a registry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.aio import in_thread
from agent.content import digest_of
from agent.errdefs import DataLoss, InvalidArgument, NotFound
from agent.images.documents import (
    ConfigDocument,
    Descriptor,
    Manifest,
    Platform,
    parse_config,
    parse_document,
)
from agent.images.platforms import best_match, runs_on
from agent.images.reference import Reference

_MAX_NESTING = 4
"""Indexes in indexes. Nobody builds more than two."""
_MAX_OFFERED = 20
"""Platforms that are named when none of them is ours."""


class OtherPlatforms(NotFound):
    """There is an image, but none that runs here."""


Fetch = Callable[[Descriptor], Awaitable[bytes]]
"""The bytes of a small document, whatever they are."""


@dataclass(frozen=True)
class LayerSource:
    """A layer and where it is to be had."""

    digest: str
    """Of the compressed file; empty in an old `docker save` archive, which has only the diff id to check against."""
    size: int | None
    diff_id: str
    name: str = ""
    """As a file of an archive."""
    urls: tuple[str, ...] = ()
    """Outside of any registry, for what registries may not have."""


class LayerFiles(Protocol):
    """Where the layers of incoming images are."""

    def staged(self, layer: LayerSource, key: str) -> AbstractAsyncContextManager[Path]:
        """A verified file of the layer, there for as long as the context; `key` names it, as in `ContentStore.staged`."""


@dataclass(frozen=True)
class IncomingImage:
    references: tuple[Reference, ...]
    digest: str
    """What its repositories know it by: that of its manifest or of the index around it; empty if it has neither."""
    manifests: tuple[bytes, ...]
    """Index and manifest, as far as there are any."""
    config_data: bytes
    config: ConfigDocument
    layers: tuple[LayerSource, ...]

    @property
    def id(self) -> str:
        return digest_of(self.config_data)


async def read_image(top: Descriptor, host: Platform, references: tuple[Reference, ...], fetch: Fetch) -> IncomingImage:
    """The image for `host` that `top`, a manifest or an index, means.

    Raises:
        OtherPlatforms: it isn't built for `host`; names what it is built for.
        InvalidArgument: a document breaks its format.
        DataLoss: a document is not what its descriptor says.
        what `fetch` raises.
    """
    manifests: list[bytes] = []
    descriptor = top
    while True:
        if len(manifests) > _MAX_NESTING:
            raise InvalidArgument(f"index {top.digest} has indexes in it, more than {_MAX_NESTING} deep")
        manifests.append(await _document(descriptor, fetch))
        found = await in_thread(parse_document, manifests[-1], f"manifest {descriptor.digest}", descriptor.media_type)
        if isinstance(found, Manifest):
            break
        entries = [entry for entry in found if entry.is_manifest]
        if (match := best_match(entries, host)) is None:
            raise _other_platforms(top, references, host, [entry.platform for entry in entries if entry.platform is not None])
        descriptor = match
    config_data = await _document(found.config, fetch)
    config = await in_thread(parse_config, config_data, f"config {found.config.digest}")
    if config.platform is not None and not runs_on(config.platform, host):
        raise _other_platforms(top, references, host, [config.platform])
    if len(config.diff_ids) != len(found.layers):
        raise InvalidArgument(f"manifest {descriptor.digest} has {len(found.layers)} layers, but its config lists {len(config.diff_ids)}")
    layers = tuple(
        LayerSource(layer.digest, layer.size, diff_id, urls=() if layer.distributable else layer.urls)
        for layer, diff_id in zip(found.layers, config.diff_ids, strict=True)
    )
    return IncomingImage(references, top.digest, tuple(manifests), config_data, config, layers)


def _other_platforms(top: Descriptor, references: tuple[Reference, ...], host: Platform, offered: list[Platform]) -> OtherPlatforms:
    known = dict.fromkeys(str(platform)[:40] for platform in offered if platform.os != "unknown")  # attestations say that
    names = ", ".join([*known][:_MAX_OFFERED]) + (" ..." if len(known) > _MAX_OFFERED else "")
    name = str(references[0]) if references else top.digest
    return OtherPlatforms(f"image {name} is not built for {host}, " + (f"but for {names}" if known else "nor for any other platform"))


async def _document(descriptor: Descriptor, fetch: Fetch) -> bytes:
    data = await fetch(descriptor)
    found = digest_of(data, descriptor.digest)
    if len(data) != descriptor.size or found != descriptor.digest:
        raise DataLoss(f"blob {descriptor.digest} is damaged: it has the digest {found} and {len(data)} of {descriptor.size} bytes")
    return data
