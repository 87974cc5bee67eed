"""`kill -9` of the daemon in the middle of each verb, and in the middle of its recovery, with each pair of shim and engine.

At every failpoint of every verb: that is the crash matrix (`tests/e2e/matrix`).
"""

from __future__ import annotations

import pytest

from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig
from tests.e2e.stories import (
    Story,
    cleanup_after_a_dead_shim,
    crash,
    create_container,
    exec_sync,
    pull_image,
    remove_container,
    remove_pod_sandbox,
    run_pod_sandbox,
    run_pod_sandbox_with_task,
    start_container,
    stop_container,
    stop_pod_sandbox,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("story", "point"),
    [
        (run_pod_sandbox, "runtime.shim.connect"),
        (create_container, "store.put.commit"),
        (start_container, "runtime.task.hold"),
        (exec_sync, "runtime.exec.start"),
        (stop_container, "cleanup.task_delete"),
        (remove_container, "snapshots.remove.rmtree"),
        (stop_pod_sandbox, "cleanup.shutdown"),
        (remove_pod_sandbox, "store.delete.commit"),
        (pull_image, "snapshots.commit.rename"),
        (cleanup_after_a_dead_shim, "cleanup.verify"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_crash_in_the_middle(rig: Rig, story: Story, point: str) -> None:
    acts = story(rig)
    crash(rig, acts, f"{point}=crash")
    rig.daemon.start()
    assert list(acts) == []


@pytest.mark.field_fault("8")
@one_pair
@pytest.mark.parametrize(
    ("story", "point"),
    [
        (run_pod_sandbox_with_task, "runtime.task.hold"),
        (start_container, "runtime.task.hold"),
        (stop_pod_sandbox, "cleanup.bundle"),
        (cleanup_after_a_dead_shim, "cleanup.shim_delete"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_crashes_while_recovering(rig: Rig, story: Story, point: str) -> None:
    """Each daemon gets a little further than the one before."""
    acts = story(rig)
    crash(rig, acts, f"{point}=crash")
    crashes = 0
    while rig.starts(f"*={1 + 3 * crashes}*crash"):
        crashes += 1
    assert crashes > 1
    assert list(acts) == []
