from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.images.node import ImageNode
from tests.unit.registry.fake import FakeRegistry


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    node = await ImageNode(tmp_path).start()
    yield node
    await node.stop()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry
