"""The end of a case: what is left, and whether the test fails. A case that fails doesn't keep those after it from being tried."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tests.e2e.faults import Rig
from tests.e2e.matrix.table import Case, Matrix, by_kind


class Judge:
    """Of one test's cases, in which something is done to its rig."""

    def __init__(self, rig: Rig, matrix: Matrix) -> None:
        faulthandler.cancel_dump_traceback_later()  # pytest's, which is for tests that hang; each step here has a budget of its own
        self._rig = rig
        self._matrix = matrix
        self._known: set[str] = set()
        self._bad: list[str] = []

    @contextmanager
    def trying(self, case: Case) -> Iterator[None]:
        """Inside, a harm is done, and all that was made is removed again, as the kubelet would; then nothing may be left."""
        self._matrix.cases.append(case)
        try:
            yield
            self._rig.assert_clean()
        except (AssertionError, grpc.RpcError, pytest.fail.Exception) as error:
            case.failure = str(error)
            left = set(self._rig.left_in_the_end()) - self._known  # what was left once is not the next case's fault
            case.left = by_kind(left)
            self._known |= left
            self._bad.append(f"{case}: {error}" + "".join(f"\n  {thing}" for thing in sorted(left)))

    def verdict(self) -> None:
        assert not self._bad, "\n".join(self._bad)
