"""The image service: pull, import, list, resolve, remove, and the snapshots that containers run on.

Images come from archives and from registries, and from then on in one way. An import first writes its intents (one INGEST per
blob, one LAYER_UNPACK per layer, in one transaction), then brings all layers in at once, and last writes the image's record, which
makes it visible; what the intents own is released in every case. Whatever no record, no container and no running import needs is
deleted right after: a failed import leaves nothing. Compressed layers are files only until they are unpacked. Records go before
files, so a power cut leaves files that the next start collects.

`cri.server` pulls, lists and removes, `agent.pods` runs containers on images.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent import failpoints, log, metrics
from agent.aio import Flights, Supervisor, in_thread
from agent.content import ContentStore, digest_of
from agent.errdefs import InvalidArgument, NotFound, OrlopError
from agent.images.archive import ArchiveLayers, read_images
from agent.images.documents import ConfigDocument, Platform, parse_config
from agent.images.files import open_files
from agent.images.image import Image, ImageRecord
from agent.images.import_job import ImportJob
from agent.images.incoming import IncomingImage, LayerFiles
from agent.images.platforms import host_platform
from agent.images.progress import Progress
from agent.images.pull import RemoteImage
from agent.images.reference import Reference, parse_reference
from agent.linux.mounts import Mount
from agent.registry import Credentials, RegistryClient
from agent.snapshots.layers import chain_ids
from agent.snapshots.snapshotter import Snapshotter, Usage
from agent.store.kinds import Kind
from agent.store.ledger import Ledger, Resource
from agent.store.records import Records
from agent.store.release import Releases

_log = log.get("images")

_ANONYMOUS = Credentials()
MEASURE_INTERVAL = 10.0
"""Seconds after which `fs_info` and `usage` have the containers' snapshots measured again; the kubelet asks about that often."""
_MEASURE_REST = 4
"""Times as long as a measurement took is none made: of many files, or on a slow disk, it shall cost a fifth of the time at the most."""


@dataclass(frozen=True)
class FsInfo:
    """Use of the file system that holds images and writable layers, as CRI's FilesystemUsage wants it."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp_ns: int


class ImageService:
    """Images of the node. `open()` first. Reads answer from memory and never wait."""

    def __init__(
        self,
        content: ContentStore,
        snapshots: Snapshotter,
        records: Records,
        ledger: Ledger,
        releases: Releases,
        registries: RegistryClient,
        *,
        pinned: Collection[str] = (),
        parallel_layers: int = 3,
        parallel_pulls: int = 10,
    ) -> None:
        """`records` is the store's disk bucket "images"; `pinned` are references of images that the kubelet shall not remove.

        `parallel_layers` of one image are read at a time, and `parallel_pulls` images pulled; others wait.
        """
        self._content = content
        self._snapshots = snapshots
        self._records = records
        self._ledger = ledger
        self._releases = releases
        self._pinned = {_key(parse_reference(name)) for name in pinned}
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}  # tag or digest reference -> image id
        self._imports = 0
        self._wanted: Counter[str] = Counter()  # chain ids that running imports need
        self._changing = asyncio.Lock()  # of records; never held by a read
        self._collecting = asyncio.Lock()
        self._supervisor = Supervisor("images")
        self._registries = registries
        self._parallel_layers = parallel_layers
        self._pull_slots = asyncio.Semaphore(parallel_pulls)
        self._pulls = Flights(self._supervisor)
        self._progress: list[Progress] = []
        self._measure_next = 0.0

    async def open(self) -> None:
        """Open content store and snapshotter, and load the images. A record that can't be used is reported and dropped."""
        await self._content.open()
        owned = {resource.key for resource in self._ledger.all() if resource.kind is Kind.SNAPSHOT}
        if removed := await self._snapshots.open(owned):
            _log.warning("removed snapshot directories that nobody owns", paths=removed)
        for image_id, data in (await self._records.load()).items():
            try:
                losers = self._set(await self._loaded(image_id, ImageRecord.from_json(data)))
            except (OrlopError, OSError, ValueError, KeyError, TypeError) as error:
                _log.error("image dropped: its record, config or a layer is unusable", image=image_id, error=str(error))
                await self._records.delete(image_id)
                continue
            for loser in losers:  # cut off in the middle of `_add`: when the winner is removed, the tag would come back
                await self._attempt(self._records.put(loser.id, _record(loser).to_json()), f"record of image {loser.id}")
        self._supervisor.start(self._collect(), name="collect")

    async def stop_pulls(self) -> None:
        """End all pulls; who waits for one gets Unavailable."""
        await self._pulls.stop()

    async def close(self, budget: float) -> None:
        """Wait for deletions under way, `budget` seconds at the most."""
        await self._supervisor.stop(budget)
        await self._snapshots.close(budget)

    # Reads

    def images(self, name: str = "") -> list[Image]:
        """All images, or only the one that `name` means."""
        if not name:
            return list(self._images.values())
        found = self.find(name)
        return [] if found is None else [found]

    def find(self, name: str) -> Image | None:
        """The image that an id, a tag or a digest reference means; None for what is not here, or is no reference at all."""
        image_id = name if name.startswith("sha256:") else f"sha256:{name}"
        if (image := self._images.get(image_id)) is not None:
            return image
        try:
            reference = parse_reference(name)
        except InvalidArgument:
            return None
        return self._images.get(self._names.get(_key(reference), ""))

    def resolve(self, name: str) -> Image:
        """`find`, for who can't go on without it. Raises NotFound."""
        image = self.find(name)
        if image is None:
            raise NotFound(f"image {name!r} is not on this node")
        return image

    async def config_document(self, image_id: str) -> bytes:
        """The image's config blob as it was built. Raises NotFound, DataLoss."""
        return await self._content.read(self.resolve(image_id).id)

    def pulls(self, name: str = "") -> list[Progress]:
        """Pulls under way, or only those of the image that `name` means. Raises InvalidArgument: it is no reference."""
        wanted = str(_pulled(name)) if name else ""
        return [progress for progress in self._progress if wanted in ("", progress.name)]

    @property
    def mountpoint(self) -> str:
        """A directory on the file system of images and writable layers, by which the CRI names it."""
        return str(self._snapshots.root)

    def usage(self, key: str) -> Usage | None:
        """What was last measured of a container's writable layer; as `Snapshotter.usage`. Starts a new measurement, as `fs_info`."""
        self._measure_again()
        return self._snapshots.usage(key)

    def fs_info(self) -> FsInfo:
        """Use of the image file system: layers, blobs and, as last measured, what containers wrote. Starts a new measurement."""
        self._measure_again()
        now = time.time()
        total = self._snapshots.total()
        blobs = self._content.list().values()
        return FsInfo(self.mountpoint, total.size + sum(blobs), total.inodes + len(blobs), int(now * 1e9))

    # Containers

    async def prepare_rootfs(self, image_id: str, key: str, volumes: Iterable[str] = ()) -> list[Mount]:
        """The mounts of a new writable rootfs; the caller has intended SNAPSHOT `key`. Raises as `Snapshotter.prepare`.

        `volumes` are ids of images that the container mounts: their layers stay, as those of its own image, until SNAPSHOT is released.
        """
        kept = [self.resolve(volume).chain_id for volume in volumes]
        return await self._snapshots.prepare(key, self.resolve(image_id).chain_id, kept)

    async def volume(self, image_id: str, sub_path: str) -> Mount:
        """How an engine mounts an image, or a directory in it, read-only: for a container whose rootfs was prepared with this volume.

        Raises:
            NotFound: no such image, or no such directory in it.
            InvalidArgument: overlayfs can't be told of that directory.
        """
        return await self._snapshots.volume(self.resolve(image_id).chain_id, sub_path)

    async def read_file(self, image_id: str, path: str) -> bytes | None:
        """A file of the image, such as /etc/passwd, without mounting it; None if it has none. Raises NotFound, ResourceExhausted."""
        return await self._snapshots.read_file(self.resolve(image_id).chain_id, path)

    # Release functions of the ledger, registered by `agent.daemon`

    async def release_snapshot(self, resource: Resource) -> None:
        await self._snapshots.remove(resource.key)
        # Its image may be gone already; whatever else is deleted now is no part of this release.
        self._supervisor.start(self._collect(), name="collect")

    async def release_unpack(self, resource: Resource) -> None:
        await self._snapshots.discard(resource.key)

    async def release_ingest(self, resource: Resource) -> None:
        await self._content.abort(resource.key)

    # Import and removal

    async def import_archive(self, path: Path, names: Sequence[str] = ()) -> list[Image]:
        """Import an OCI layout (directory or tar) or a `docker save` archive: all of its images for this platform, or none.

        `names` replaces the names that the archive gives, which it may do only if it holds one image.

        Raises:
            NotFound: nothing is at `path`, or nothing in it is for this platform.
            InvalidArgument: it is not an image archive, or a document, a name or a layer breaks the rules.
            DataLoss: something in it is damaged: a wrong digest or size, a layer that can't be decompressed.
            ResourceExhausted: a layer is a bomb, or the disk is full.
            Unavailable: the ledger can't be written.
        """
        given = tuple(map(parse_reference, names))
        async with open_files(path) as files:
            images = await read_images(files, path, host_platform())
            if given and len(images) > 1:
                raise InvalidArgument(f"{path} holds {len(images)} images; names can be given for one only")
            if given:
                images = [replace(images[0], references=given)]
            async with self._wanting(images):
                await self._bring_in(ArchiveLayers(files, self._content), images, Progress(str(path)))
                await self._snapshots.sync()  # of what was pulled there is another copy, of this perhaps not
                return await self._supervisor.detached(self._publish(images), name=f"publish {path}")

    async def pull(self, name: str, credentials: Credentials = _ANONYMOUS, platform: Platform | None = None) -> Image:
        """Pull what a tag or a digest reference means at its registry, for this node's platform unless another one is given.

        Equal pulls are one: each caller gets its outcome, and it ends when the last of them is cancelled. Nothing is left of it then,
        nor after an error.

        Raises:
            InvalidArgument: `name` is no reference, a hosts.toml is wrong, or the image is nothing that can be run.
            NotFound: the registry doesn't have it, or not for this platform.
            PermissionDenied: the registry wants other credentials.
            RegistryUnavailable: the registry can't be reached, or doesn't deliver. Unavailable: the agent stops.
            DeadlineExceeded: a layer took too long to unpack.
            DataLoss: what it delivers is not what the digests say.
            FailedPrecondition, Unknown: its certificate isn't trusted; it does what no registry should.
            ResourceExhausted: a layer is a bomb, or the disk is full.
        """
        reference, platform = _pulled(name), platform or host_platform()
        key = (reference, credentials, platform)  # with other credentials it may fail, and must
        return await self._pulls.join(key, lambda: self._pull(reference, credentials, platform), name=f"pull of {reference}")

    async def remove(self, name: str) -> None:
        """Remove an image by id, with all its names, or one of its names, and with the last tag (or, untagged, the last digest
        reference) the image.

        Layers and blobs that nothing needs any more are deleted before this returns; containers keep theirs. What can't be
        deleted is logged, and tried again by the next pull or removal, and at the next start.
        """
        await self._supervisor.detached(self._remove(name), name=f"remove {name}")

    # Inside

    async def _pull(self, reference: Reference, credentials: Credentials, platform: Platform) -> Image:
        started = time.monotonic()
        progress = Progress(str(reference))
        self._progress.append(progress)
        metrics.image_pulls_running.inc()
        outcome = "failure"
        try:
            async with self._pull_slots:
                image = await self._pull_one(reference, credentials, platform, progress)
            outcome = "success"
        finally:
            self._progress.remove(progress)
            metrics.image_pulls_running.dec()
            metrics.image_pulls.labels(outcome).inc()
        _log.info("image pulled", image=str(reference), id=image.id, size=image.size, seconds=round(time.monotonic() - started, 3))
        return image

    async def _pull_one(self, reference: Reference, credentials: Credentials, platform: Platform, progress: Progress) -> Image:
        async with self._registries.repository(reference.domain, reference.path, credentials) as repository, self._wanting([]):
            remote = RemoteImage(reference, repository, self._content, progress)
            images = [await remote.read(platform)]
            async with self._wanting(images):
                await self._bring_in(remote, images, progress)
                (pulled,) = await self._supervisor.detached(self._publish(images), name=f"publish {reference}")
                return pulled

    async def _bring_in(self, files: LayerFiles, images: Sequence[IncomingImage], progress: Progress) -> None:
        job = ImportJob(self._content, self._snapshots, files, images, parallel=self._parallel_layers, progress=progress)
        await failpoints.hit("images.import.intend")
        await self._ledger.intend(*job.intents())
        try:
            await job.run()
        finally:
            resources = [resource for name in job.resources() if (resource := self._ledger.get(*name)) is not None]
            await self._releases.release(resources)

    @asynccontextmanager
    async def _wanting(self, images: Sequence[IncomingImage]) -> AsyncIterator[None]:
        """While this is held, no document is deleted and no layer of `images`; after it, everything that nothing needs."""
        wanted = {chain_id for image in images for chain_id in chain_ids(image.config.diff_ids)}
        self._imports += 1
        self._wanted.update(wanted)
        try:
            yield
        finally:
            self._imports -= 1
            self._wanted.subtract(wanted)
            self._wanted = +self._wanted
            await self._supervisor.detached(self._collect(), name="collect")

    # The two below change record and memory together, and so run detached from their callers. A record goes before what is in
    # memory, because from then on files may go; it comes before it, too, so that what could not be written was never seen.

    async def _publish(self, images: Sequence[IncomingImage]) -> list[Image]:
        async with self._wanting(images), self._changing:
            return [await self._add(image) for image in images]

    async def _remove(self, name: str) -> None:
        async with self._changing:
            if (image := self.find(name)) is not None:
                left = _without(image, name)
                await failpoints.hit("images.remove.record")
                if left is None:
                    await self._records.delete(image.id)
                    self._forget(image)
                else:
                    await self._records.put(left.id, _record(left).to_json())
                    self._forget(image)
                    self._set(left)
        await self._collect()  # also of what an earlier call could not delete

    async def _add(self, incoming: IncomingImage) -> Image:
        known = self._images.get(incoming.id)
        manifests = set(map(digest_of, incoming.manifests))
        tags = {reference.tagged for reference in incoming.references if reference.tag}
        digests = {reference.with_digest(incoming.digest) for reference in incoming.references if incoming.digest}
        record = ImageRecord(
            tags=tuple(sorted(tags.union(known.tags if known else ()))),
            digests=tuple(sorted(digests.union(known.digests if known else ()))),
            manifests=tuple(sorted(manifests.union(known.manifests if known else ()))),
        )
        image = self._made(incoming.id, record, incoming.config, len(incoming.config_data))
        await failpoints.hit("images.import.put")
        await self._records.put(image.id, record.to_json())
        for other in self._set(image):
            await self._records.put(other.id, _record(other).to_json())
        return self._images[image.id]

    async def _loaded(self, image_id: str, record: ImageRecord) -> Image:
        config_data = await self._content.read(image_id)
        config = await in_thread(parse_config, config_data, f"config {image_id}")
        if missing := [digest for digest in record.manifests if not self._content.exists(digest)]:
            raise NotFound(f"manifest {missing[0]} is gone")
        return self._made(image_id, record, config, len(config_data))

    def _made(self, image_id: str, record: ImageRecord, document: ConfigDocument, config_size: int) -> Image:
        """Raises NotFound: a layer is not there."""
        size = config_size + sum(map(self._content.size, record.manifests))
        chain = chain_ids(document.diff_ids)
        for chain_id in chain:
            layer = self._snapshots.layer(chain_id)
            if layer is None:
                raise NotFound(f"layer {chain_id} is gone")
            size += layer.size
        return Image(
            id=image_id,
            tags=record.tags,
            digests=record.digests,
            size=size,
            layers=document.diff_ids,
            chain_id=chain[-1] if chain else "",
            config=document.config,
            manifests=record.manifests,
        )

    def _set(self, image: Image) -> list[Image]:
        """Make `image` visible; returns the images that lost a tag to it."""
        losers = {self._names[tag] for tag in image.tags if tag in self._names} - {image.id}
        changed = [
            replace(other, tags=tuple(tag for tag in other.tags if tag not in image.tags))
            for other in map(self._images.__getitem__, losers)
        ]
        for visible in (*changed, image):
            self._images[visible.id] = replace(visible, pinned=not self._pinned.isdisjoint((*visible.tags, *visible.digests)))
        self._names.update(dict.fromkeys((*image.tags, *image.digests), image.id))
        return changed

    def _forget(self, image: Image) -> None:
        del self._images[image.id]
        for name in (*image.tags, *image.digests):
            if self._names.get(name) == image.id:
                del self._names[name]

    async def _collect(self) -> None:
        """Delete layers and blobs that nothing needs. Never raises: what is left is found again."""
        async with self._collecting:
            for chain_id in self._unused_layers():
                if chain_id in self._unused_layers():  # somebody may have come to need it while another was deleted
                    await self._attempt(self._snapshots.delete_layer(chain_id), f"layer {chain_id}")
            for digest in self._content.list().keys() - self._needed_blobs():
                # A running import may count on any blob: the last one to end deletes them.
                if not self._imports and digest not in self._needed_blobs():
                    await self._attempt(self._content.delete(digest), f"blob {digest}")

    def _unused_layers(self) -> list[str]:
        return self._snapshots.unused([*(image.chain_id for image in self._images.values()), *self._wanted])

    def _needed_blobs(self) -> set[str]:
        return {digest for image in self._images.values() for digest in (image.id, *image.manifests)}

    async def _attempt(self, change: Awaitable[None], what: str) -> None:
        try:
            await change
        except (OrlopError, OSError) as error:
            _log.error("not changed on disk, the next start tries again", what=what, error=str(error))

    def _measure_again(self) -> None:
        if time.monotonic() >= self._measure_next:
            self._measure_next = math.inf
            self._supervisor.start(self._measure(), name="measure snapshots")

    async def _measure(self) -> None:
        began = time.monotonic()
        try:
            await self._snapshots.measure()
        finally:
            ended = time.monotonic()
            self._measure_next = ended + max(MEASURE_INTERVAL, _MEASURE_REST * (ended - began))


def _pulled(name: str) -> Reference:
    """What a pull of `name` asks for: beside a digest a tag counts nothing, since whether it means that digest nobody has asked."""
    reference = parse_reference(name)
    return replace(reference, tag="") if reference.digest else reference


def _key(reference: Reference) -> str:
    """The name by which an image has it: with both, the digest decides, as for a pull."""
    return reference.with_digest(reference.digest) if reference.digest else reference.tagged


def _record(image: Image) -> ImageRecord:
    return ImageRecord(image.tags, image.digests, image.manifests)


def _without(image: Image, name: str) -> Image | None:
    """`image` without the name by which it is being removed; None: that was its id, or the last name that keeps it."""
    if name in (image.id, image.id.removeprefix("sha256:")):
        return None
    reference = parse_reference(name)
    if reference.digest:
        left = replace(image, digests=tuple(entry for entry in image.digests if entry != reference.with_digest(reference.digest)))
        return left if left.tags or left.digests else None
    left = replace(image, tags=tuple(entry for entry in image.tags if entry != str(reference)))
    return left if left.tags else None
