from __future__ import annotations

from tests.unit.leaks.conftest import node

__all__ = ["node"]
