"""Schedules that once failed, made short, with the mistake that they found."""

from __future__ import annotations

from typing import NamedTuple

from tests.unit.simulation.schedule import Op, Schedule


class Case(NamedTuple):
    seed: int
    schedule: Schedule


CASES: dict[str, Case] = {
    # A container's own shim, where shims don't group, was not in the ledger until after its start.
    "own_shim": Case(
        1,
        [
            Op("failpoint", how="crash", number=2, text="runtime.shim.connect"),
            Op("start", how="wait", text="gvisor"),
        ],
    ),
    # A container whose removal a crash had cut off could be started, on a layer that was being removed.
    "start_of_a_half_removed_one": Case(
        1124,
        [
            Op("create", how="wait", text="1.7"),
            Op("failpoint", how="crash", number=1, text="store.release.drop"),
            Op("remove", how="wait", text="1.7"),
            Op("start", how="wait", text="1.7"),
        ],
    ),
    # A sandbox task whose create hung for ever: not listed yet, nobody could stop it.
    "hung_sandbox_task": Case(
        50,
        [
            Op("restart"),
            Op("crash"),
            Op("fault", how="hangs", text="engine create"),
            Op("run", how="cancel", number=2.0, text="gvisor"),
        ],
    ),
    # Finding out that the log copier is mute took exactly as long as the daemon gave its start: it never started again.
    "mute_copier": Case(14, [Op("start", how="wait", text="2.1"), Op("stop copier"), Op("crash"), Op("restart")]),
    # What a dead shim left beside its containers was forgotten if the first try failed.
    "what_a_dead_shim_left": Case(
        2127,
        [
            Op("failpoint", how="error", number=1, text="cleanup.shim_dead"),
            Op("failpoint", how="hang", number=1, text="cleanup.shim_cgroup"),
            Op("run", how="wait", text="2.1-task"),
            Op("remove pod", how="twice", text="2.1-task"),
            Op("remove pod", how="wait", text="2.1-task"),
        ],
    ),
    # A sandbox task was freed, with the bundle that its shim works in, while that shim had a container that it couldn't delete.
    "sandbox_before_an_undeletable_container": Case(
        3411,
        [
            Op("failpoint", how="crash", number=1, text="cleanup.shim_dead"),
            Op("stop", container=1, how="wait", text="kata"),
            Op("fault", how="fails", text="task delete"),
            Op("remove pod", how="wait", number=0.02, text="kata"),
        ],
    ),
    # A container whose sandbox has no record was listed for ever.
    "container_without_sandbox": Case(
        3471,
        [
            Op("failpoint", how="hang", number=2, text="store.delete.commit"),
            Op("remove", how="wait", number=0.02, text="1.7"),
            Op("remove", how="cancel", text="1.7"),
            Op("remove pod", how="wait", number=2.0, text="1.7"),
        ],
    ),
    # An exit that couldn't be recorded at once: the container ran for ever, by its record.
    "exit_not_recorded_at_once": Case(
        14587,
        [
            Op("failpoint", how="error", number=1, text="pods.exits.record"),
            Op("restart"),
            Op("crash"),
            Op("start", how="wait", text="2.1"),
            Op("end", number=3),
            Op("pass", number=1.0),
        ],
    ),
    # The simulation's own: a container whose teardown failed before its `shim delete` holds up no other, be it the sandbox.
    "identify_hangs": Case(
        28079,
        [
            Op("failpoint", how="hang", number=1, text="cleanup.identify"),
            Op("exec", how="cancel", number=2.0, text="2.1-task"),
            Op("kill shim", container=1),
            Op("exec", container=1, how="cancel", number=2.0, text="2.1-task"),
        ],
    ),
    # An exec that was taken down while it was being registered ended with a KeyError.
    "exec_taken_down_early": Case(
        33,
        [
            Op("start", how="wait", text="2.1"),
            Op("exec", how="cancel", text="2.1"),
            Op("remove", how="wait", text="2.1"),
        ],
    ),
}
