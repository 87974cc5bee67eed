"""A disk that is full, or fails, at each step of the store: a call fails with what to do, nothing is half made, all can be removed.

The disks are small ones of the test's own: below the root directory an ext4 on a loop device, for the state directory a tmpfs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.client import until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.faults import Rig
from tests.e2e.matrix import disks, slices
from tests.e2e.matrix.judge import Judge
from tests.e2e.matrix.table import Case, Matrix, by_kind
from tests.e2e.matrix.test_crashes import VERBS, Hit, hits_of, refusal
from tests.e2e.stories import Story

pytestmark = [pytest.mark.e2e, one_pair, pytest.mark.field_fault("25"), pytest.mark.timeout(1800)]

TIMEOUTS = "RELEASE_RETRY=1"
OF = 7
"""Slices of CI that verbs and harms are divided into."""
MAKE = {"RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "PullImage"}
"""Calls that need room. The others, which stop and remove, must not."""
CLEAR = re.compile(
    r"(UNAVAILABLE|RESOURCE_EXHAUSTED): .*(make room there|see the kernel's log).*"
    r"|UNKNOWN: .*(no space left on device|did not terminate successfully).*",
    re.DOTALL,
)
"""The agent says what to do. A shim says what it knows: an engine that fails would have written why to the disk that is full."""


@contextmanager
def prepared(daemon: Daemon) -> Iterator[None]:
    """The disks of the module's daemon."""
    with disks.small_disk(image_of(daemon), daemon.root.parent), disks.small_tmpfs(daemon.state):
        yield


def image_of(daemon: Daemon) -> Path:
    return daemon.root.parent.with_suffix(".img")


Harm = Callable[[Daemon], AbstractContextManager[None]]
FULL_STATE = "the state directory's is full"
HARMS: dict[str, Harm] = {
    "the root directory's disk is full": lambda daemon: disks.full(daemon.root.parent),
    FULL_STATE: lambda daemon: disks.full(daemon.state),
    "the root directory's fails": lambda daemon: disks.failing(image_of(daemon), daemon.root.parent),
}


@pytest.mark.parametrize(
    ("verb", "story", "harm"),
    # A pod whose shim dies gets another one, which needs room for its socket.
    slices.part([(*told, harm) for told in VERBS for harm in HARMS if (told[0], harm) != ("a shim dies", FULL_STATE)], OF),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_at_each_step_of_the_store(rig: Rig, verb: str, story: Story, harm: str, matrix: Matrix) -> None:
    judge, pid = Judge(rig, matrix), rig.daemon.pid
    hits = [hit for hit in hits_of(rig, story) if hit[0].startswith("store.")]
    for point, nth in hits:
        case = Case("a disk is full or fails", f"{point}: {harm}", verb, str(rig.daemon.pair), detail=f"{story.__name__}, time {nth}")
        with judge.trying(case):
            spoiled(rig, story, (point, nth), HARMS[harm], verb in MAKE, case)
            assert rig.daemon.pid == pid
            assert not rig.daemon.ended()
    acts = story(rig)  # and with room again all is well
    next(acts)()
    assert list(acts) == []
    judge.verdict()


def spoiled(rig: Rig, story: Story, hit: Hit, harm: Harm, may_fail: bool, case: Case) -> None:
    """The disk becomes bad while the verb of a story is held at a step; then all is removed, while it still is."""
    verb = next(story(rig))
    with ExitStack() as bad:
        with rig.paused(hit[0], lambda: refusal(verb), hit[1]) as doing:
            bad.enter_context(harm(rig.daemon))
        said = doing.result()
        case.at, case.refused = by_kind(rig.left()), said is not None
        if said is not None:
            assert may_fail, f"it needs no room, but: {said}"
            assert CLEAR.fullmatch(str(said)), said
        rig.tidy()
        until(lambda: not rig.left(), what="all is removed while the disk is bad", within=15, detail=rig.left)
