"""The image service on a real store, content store and snapshotter; only the unpack worker runs in the test's process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tenacity

from agent import failpoints
from agent.content import ContentStore
from agent.images.service import ImageService
from agent.registry import RegistryClient
from agent.snapshots.snapshotter import Snapshotter
from agent.store.kinds import Kind
from agent.store.release import Releases
from agent.store.store import Store
from tests.unit.snapshots.fakes import InProcessRunner

BASE = {"etc/passwd": b"root:x:0:0", "bin/sh": b"#!"}
NOISE = os.urandom(3 << 20)


class ImageNode:
    """One incarnation of the part of the daemon that matters here."""

    def __init__(self, root: Path, pinned: tuple[str, ...] = (), parallel_pulls: int = 10) -> None:
        self.root = root
        self.pinned = pinned
        self.parallel_pulls = parallel_pulls
        self.runner = InProcessRunner()

    async def start(self) -> ImageNode:
        self.store = await Store.open(self.root / "run", self.root / "lib")
        self.releases = Releases(self.store.ledger, time.time)
        self.content = ContentStore(self.root / "lib/content")
        self.snapshots = Snapshotter(self.root / "lib/snapshots", self.runner)
        self.images = ImageService(
            self.content,
            self.snapshots,
            self.store.disk_records("images"),
            self.store.ledger,
            self.releases,
            RegistryClient(self.root / "certs.d", {}, wait=tenacity.wait_none()),
            pinned=self.pinned,
            parallel_pulls=self.parallel_pulls,
        )
        self.releases.register(Kind.INGEST, self.images.release_ingest)
        self.releases.register(Kind.LAYER_UNPACK, self.images.release_unpack)
        self.releases.register(Kind.SNAPSHOT, self.images.release_snapshot)
        await self.images.open()
        return self

    async def stop(self) -> None:
        failpoints.configure("")
        await self.images.close(5)
        await self.releases.stop(5)
        await self.store.close()

    async def restarted(self) -> ImageNode:
        await self.stop()
        return await ImageNode(self.root, self.pinned).start()

    def below(self, name: str) -> int:
        return len(list((self.root / "lib" / name).iterdir()))

    def left(self) -> dict[str, int]:
        """How many of everything that an image can leave."""
        names = ("content/ingest", "content/blobs/sha256", "snapshots/unpack", "snapshots/layers", "snapshots/l", "snapshots/trash")
        return {name.rpartition("/")[2]: count for name in names if (count := self.below(name))}


def nothing_left(node: ImageNode) -> None:
    assert node.left() == {}
    assert node.images.images() == []
    assert node.images.pulls() == []
    assert node.store.ledger.all() == []


async def until(condition: Callable[[], Any]) -> None:
    """What happens behind sockets and threads tells nobody when it has."""
    while not condition():
        await asyncio.sleep(0.001)
