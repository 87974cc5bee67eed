from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.images.node import ImageNode


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    node = await ImageNode(tmp_path).start()
    yield node
    await node.stop()
