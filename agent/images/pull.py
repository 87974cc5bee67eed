"""One image of a registry, as `agent.images.service` brings images in: documents first, layers when they are wanted.

What is here already isn't fetched again: documents are looked for in the content store, layers by the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from agent import metrics
from agent.content import ContentStore, digest_of
from agent.errdefs import DataLoss, InvalidArgument
from agent.images.documents import MAX_DOCUMENT, Descriptor, Platform
from agent.images.incoming import IncomingImage, LayerSource, read_image
from agent.images.progress import Progress
from agent.images.reference import Reference
from agent.registry import Repository


class RemoteImage:
    """The image that `reference` means in `repository`. Its caller keeps what is in `content` from being deleted."""

    def __init__(self, reference: Reference, repository: Repository, content: ContentStore, progress: Progress) -> None:
        self._reference = reference
        self._repository = repository
        self._content = content
        self._progress = progress

    async def read(self, host: Platform) -> IncomingImage:
        """Its documents, for `host`.

        Raises:
            NotFound: the registry has no such image, or none for `host`.
            InvalidArgument: it is no image that could be run, or a document breaks its format.
            what `Repository` raises.
        """
        digest = self._reference.digest or await self._repository.resolve(self._reference.tag, MAX_DOCUMENT)
        if not self._content.exists(digest):
            data, media_type = await self._repository.manifest(digest, MAX_DOCUMENT)
        else:
            if self._reference.digest:  # whether these credentials are good for it is the registry's to say
                await self._repository.resolve(digest, MAX_DOCUMENT)
            data, media_type = await self._content.read(digest), ""
        top = Descriptor(media_type, digest, len(data))

        async def fetch(descriptor: Descriptor) -> bytes:
            return data if descriptor.digest == digest else await self._document(descriptor)

        return await read_image(top, host, (self._reference,), fetch)

    @asynccontextmanager
    async def staged(self, layer: LayerSource, key: str) -> AsyncIterator[Path]:
        """See `LayerFiles`."""
        size = layer.size or 0

        async with AsyncExitStack() as stack:

            async def store(stream: AsyncIterator[bytes]) -> Path:
                return await stack.enter_async_context(self._content.staged(self._counted(stream, layer), key, layer.digest, size))

            yield await self._repository.fetch(layer.digest, size, store, layer.urls)

    async def _counted(self, stream: AsyncIterator[bytes], layer: LayerSource) -> AsyncIterator[bytes]:
        offset = 0
        async for chunk in stream:
            offset += len(chunk)
            metrics.image_pull_bytes.inc(len(chunk))
            self._progress.received(layer.digest, offset)
            yield chunk

    async def _document(self, descriptor: Descriptor) -> bytes:
        """A manifest in an index, or a config."""
        if self._content.exists(descriptor.digest):
            return await self._content.read(descriptor.digest)
        if descriptor.size > MAX_DOCUMENT:
            raise InvalidArgument(f"image {self._reference}: {descriptor.digest} has {descriptor.size} bytes, more than {MAX_DOCUMENT}")
        if descriptor.is_manifest:
            return (await self._repository.manifest(descriptor.digest, MAX_DOCUMENT)).data

        async def gather(stream: AsyncIterator[bytes]) -> bytes:
            data = b"".join([chunk async for chunk in stream])
            if (found := digest_of(data, descriptor.digest)) != descriptor.digest:
                raise DataLoss(f"blob {descriptor.digest} of image {self._reference} came with the digest {found}")
            return data

        return await self._repository.fetch(descriptor.digest, descriptor.size, gather)
