"""The daemon is killed at every failpoint that a verb passes, one after the other; and at each a step fails once.

Which ones a verb passes is noted when nothing is amiss. A failpoint is where the agent is about to touch the world outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import grpc
import pytest

from tests.e2e import stories
from tests.e2e.faults import Rig
from tests.e2e.matrix import slices
from tests.e2e.matrix.judge import Judge
from tests.e2e.matrix.table import Case, Matrix, by_kind
from tests.e2e.stories import Acts, Story

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

TIMEOUTS = "RELEASE_RETRY=1"  # or what failed would be tried again after the tests' patience

ONCE = {"run_pod_sandbox_with_task", "stop_pod_sandbox_with_task", "cleanup_after_a_dead_shim"}
"""Stories that are others' with a few steps more: of each failpoint one time is tried, and not the first and the last."""
REDIAL = {"runtime.shim.connect", "ttrpc.connect.dial"}
"""Passed or not when a shim ends: its connection may be closed a moment before its process is gone."""
ERRORS_OF = 6
"""Slices of CI that the failing steps are divided into."""

Hit = tuple[str, int]
"""A failpoint, and the how manieth time that it is passed."""
Harm = Callable[[Rig, Acts, Hit, Case], None]
"""Does what is wrong under the verb of a story, and notes what is on the node then."""

VERBS = [(verb, story) for verb, told in stories.STORIES.items() for story in told]


def hits_of(rig: Rig, story: Story) -> list[Hit]:
    """What the verb of a story passes: of each failpoint the first and the last time."""
    acts = story(rig)
    verb = next(acts)
    rig.daemon.failpoints(stories.ANYWHERE)
    verb()
    passed = rig.daemon.failpoints("")
    assert list(acts) == []
    assert passed
    if story.__name__.startswith("stop_pod_sandbox"):
        passed = [point for point in passed if point not in REDIAL]
    return [(point, nth) for point, times in Counter(passed).items() for nth in ({times} if story.__name__ in ONCE else {1, times})]


def killed(rig: Rig, acts: Acts, hit: Hit, case: Case) -> None:
    stories.crash(rig, acts, f"{hit[0]}={hit[1]}*crash")
    case.at = by_kind(rig.on_node())
    rig.daemon.start()


def failed(rig: Rig, acts: Acts, hit: Hit, case: Case) -> None:
    """The verb fails with the reason, or gets by without that step."""
    point, nth = hit
    verb = next(acts)
    rig.daemon.failpoints(f"{point}={nth}*error(on purpose)")
    said = refusal(verb)
    assert said is None or f"failpoint {point}: on purpose" in said
    case.at, case.refused = by_kind(rig.left()), said is not None
    assert rig.daemon.failpoints("").count(point) >= nth, "it was not passed"


def refusal(call: Callable[[], object]) -> str | None:
    """What a call failed with; None if it didn't."""
    try:
        call()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return None


def tell(rig: Rig, matrix: Matrix, harm: Harm, title: str, verb: str, story: Story, hits: Iterable[Hit]) -> None:
    """Does one harm after the other, and each time goes on as the kubelet does."""
    judge = Judge(rig, matrix)
    for point, nth in hits:
        case = Case(title, point, verb, str(rig.daemon.pair), detail=f"{story.__name__}, time {nth}")
        with judge.trying(case):
            acts = story(rig)
            harm(rig, acts, (point, nth), case)
            assert list(acts) == []
    judge.verdict()


@pytest.mark.field_fault("8", "M4")
@pytest.mark.parametrize(("verb", "story"), VERBS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_crash_at_every_failpoint(rig: Rig, verb: str, story: Story, matrix: Matrix) -> None:
    tell(rig, matrix, killed, "the daemon is killed", verb, story, hits_of(rig, story))


@pytest.mark.parametrize(
    ("verb", "story"),
    [told for told in VERBS if told[0] != "a shim dies"],  # no call is made that could be repeated: there is a new shim when it is needed
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_failure_at_every_failpoint(rig: Rig, verb: str, story: Story, matrix: Matrix) -> None:
    tell(rig, matrix, failed, "a step fails", verb, story, slices.part(hits_of(rig, story), ERRORS_OF))
