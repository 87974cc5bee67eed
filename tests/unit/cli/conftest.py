from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def logging() -> Iterator[None]:
    """The command sets up logging for the whole process."""
    yield
    structlog.reset_defaults()
