"""The way of incoming images to committed layers and stored documents. Made and run by `agent.images.service`.

Layers come in side by side; each waits for the one below only before its commit. A layer that is there, or that another import
is bringing in, is not unpacked again: there is one copy of it, whoever asked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from agent.content import ContentStore, digest_of
from agent.errdefs import of_disk
from agent.images.incoming import IncomingImage, LayerFiles, LayerSource
from agent.images.progress import Phase, Progress
from agent.snapshots.layers import chain_ids
from agent.snapshots.snapshotter import Snapshotter
from agent.store.kinds import Kind
from agent.store.ledger import Intent, ResourceId


def _new_key() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class _Step:
    """A layer to bring in."""

    chain_id: str
    parent: str
    source: LayerSource
    ingest_key: str = field(default_factory=_new_key)
    unpack_key: str = field(default_factory=_new_key)


class ImportJob:
    """What `images` need that is not here yet. The caller has made sure that nothing of what is here gets deleted."""

    def __init__(
        self,
        content: ContentStore,
        snapshots: Snapshotter,
        files: LayerFiles,
        images: Sequence[IncomingImage],
        *,
        parallel: int,
        progress: Progress,
    ) -> None:
        """`parallel` layers are read at a time; unpacking has a bound of its own, the snapshotter's."""
        self._content = content
        self._snapshots = snapshots
        self._files = files
        self._progress = progress
        self._steps: dict[str, _Step] = {}
        for image in images:
            parent = ""
            for chain_id, source in zip(chain_ids(image.config.diff_ids), image.layers, strict=True):
                missing = snapshots.layer(chain_id) is None
                progress.add(chain_id, source.digest, source.size or 0, Phase.WAITING if missing else Phase.DONE)
                if missing:
                    self._steps[chain_id] = _Step(chain_id, parent, source)
                parent = chain_id
        documents = {digest_of(data): data for image in images for data in (image.config_data, *image.manifests)}
        self._documents = {_new_key(): data for digest, data in documents.items() if not content.exists(digest)}
        self._reads = asyncio.Semaphore(parallel)

    def intents(self) -> list[Intent]:
        """What `run` acquires: partial blobs and layer directories, none of which outlives it when all goes well."""
        return [
            *(Intent(Kind.INGEST, step.ingest_key, "", data={"diff_id": step.source.diff_id}) for step in self._steps.values()),
            *(Intent(Kind.LAYER_UNPACK, step.unpack_key, "", data={"chain_id": step.chain_id}) for step in self._steps.values()),
            *(Intent(Kind.INGEST, key, "", data={"digest": digest_of(data)}) for key, data in self._documents.items()),
        ]

    def resources(self) -> Collection[ResourceId]:
        """The ledger's names of the intents."""
        return [intent.id for intent in self.intents()]

    async def run(self) -> None:
        """Bring it all in, or raise what went wrong first; the rest is then cancelled, and ended."""
        commits: dict[str, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for key, data in self._documents.items():
                    group.create_task(self._store(key, data), name=f"store {digest_of(data)}")
                for step in self._steps.values():  # an image's layers come base first, so the one below has its task already
                    parent = commits.get(step.parent)
                    commits[step.chain_id] = group.create_task(self._layer(step, parent), name=f"import layer {step.chain_id}")
        except BaseExceptionGroup as failed:
            raise _told(failed.exceptions[0]) from failed

    async def _store(self, key: str, data: bytes) -> None:
        await self._content.ingest(_once(data), key, digest_of(data), len(data))

    async def _layer(self, step: _Step, parent: asyncio.Task[None] | None) -> None:
        async with self._snapshots.claim(step.chain_id):
            if self._snapshots.layer(step.chain_id) is None:
                await self._bring_in(step, parent)
        self._progress.enter(step.chain_id, Phase.DONE)

    async def _bring_in(self, step: _Step, parent: asyncio.Task[None] | None) -> None:
        async with AsyncExitStack() as staged:
            async with self._reads:
                self._progress.enter(step.chain_id, Phase.DOWNLOADING)
                file = await staged.enter_async_context(self._files.staged(step.source, step.ingest_key))
            self._progress.enter(step.chain_id, Phase.UNPACKING)
            unpacked = await self._snapshots.unpack(step.unpack_key, file, step.source.diff_id)
        if parent is not None:
            await asyncio.shield(parent)  # its own end is the group's business: a cancelled child must not cancel it once more
        await self._snapshots.commit(unpacked, step.parent)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _told(error: BaseException) -> BaseException:
    return (isinstance(error, OSError) and of_disk(error, error.filename or "a layer")) or error
