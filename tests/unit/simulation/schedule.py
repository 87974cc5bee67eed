"""Schedules: what happens to one node, one thing after the other, as a list that can be printed, shortened and run again.

`generate(seed)` makes one. Its parts say what they are about by small numbers (the pod in slot 0, its container 1), so that leaving
one out leaves the others what they were.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.unit.simulation.failures import ACTIONS, simulated_names

SLOTS, CONTAINERS = 3, 2
HANDLERS = ("1.6", "1.7", "2.1", "main", "kata", "gvisor", "1.6-task", "2.1-task")

FAULTS: dict[str, tuple[str, ...]] = {
    "engine create": ("fails", "hangs", "killed early", "killed late"),
    "engine start": ("fails",),
    "engine delete": ("lies", "fails", "hangs"),
    "task delete": ("fails", "hangs"),
    "shim start": ("fails", "hangs", "hangs late", "garbage", "dies"),
    "shim delete": ("lies", "fails", "hangs"),
    "cni ADD": ("fails", "fails late", "hangs", "garbage", "slow"),
    "cni DEL": ("fails", "fails late", "hangs", "slow"),
    "log open": ("fails",),
    "log close": ("hangs",),
    "helper": ("killed",),
}
"""What goes wrong the next time that a program of the node does something."""
HARMS = (
    "kill shim", "stop shim", "continue shim", "hang up", "kill init", "hold rootfs", "let go", "fill disk", "empty disk", "kill copier",
    "stop copier", "unpin", "freeze", "thaw", "state D", "no state D",
)  # fmt: skip
"""What is done to the node at once."""
CALLS = ("run", "create", "start", "stop", "remove", "stop pod", "remove pod", "exec")
HOWS = ("wait", "wait", "wait", "beside", "beside", "cancel", "twice")
"""How a call is made: and waited for (for some time), beside what comes next, given up after a moment, or two times at once."""


class Op(NamedTuple):
    """One thing that happens."""

    what: str
    slot: int = 0
    container: int = 0
    how: str = ""
    number: float = 0.0
    text: str = ""

    def __repr__(self) -> str:
        fields = [repr(self.what)]
        fields += [f"{name}={getattr(self, name)!r}" for name in self._fields[1:] if getattr(self, name) != self._field_defaults[name]]
        return f"Op({', '.join(fields)})"


Schedule = list[Op]

_THEMES: dict[str, Schedule] = {
    "cleanup.reap": [
        Op("start", how="wait"), Op("fault", how="lies", text="shim delete"), Op("kill shim"), Op("pass", number=5.0),
    ],
    "cleanup.drop": [Op("start", how="wait"), Op("kill shim"), Op("pass", number=5.0)],
    "cleanup.publish": [Op("start", how="wait"), Op("kill shim"), Op("pass", number=5.0)],
    "cleanup.shim_delete": [Op("start", how="wait"), Op("kill shim"), Op("pass", number=5.0)],
    "cleanup.socket": [Op("start", how="wait"), Op("kill shim"), Op("pass", number=5.0)],
    "cleanup.gate": [Op("start", how="wait"), Op("stop pod", how="wait")],
    "cleanup.shim_bundle": [Op("start", how="wait"), Op("stop pod", how="wait")],
    "pods.container_stop.cgroup": [Op("start", how="wait"), Op("state D"), Op("stop", how="wait")],
    "pods.exits.record": [Op("start", how="wait"), Op("end", number=3), Op("pass", number=1.0)],
    "logs.capture.fifos": [Op("exec", how="wait")],
    "pods.exec_sync.exec": [Op("exec", how="wait")],
    "runtime.task.exec": [Op("exec", how="wait")],
    "runtime.exec.start": [Op("exec", how="wait")],
    "store.delete.commit": [Op("create", how="wait"), Op("remove", how="wait")],
    "pods.container_start.start": [Op("start", how="wait")],
    "pods.container_start.record": [Op("start", how="wait")],
}  # fmt: skip
"""What leads to failpoints that are seldom passed otherwise."""


def generate(seed: int, length: int = 30) -> Schedule:
    """A schedule of 20 calls or more, and at least one crash."""
    choices = random.Random(f"schedule {seed}")
    handler = {slot: choices.choice(HANDLERS) for slot in range(SLOTS)}
    calm = choices.random() < 0.15
    busy = 1 if choices.random() < 0.4 else SLOTS
    schedule: Schedule = []
    calls = 0
    while calls < 20 or len(schedule) < length:
        slot = choices.randrange(busy)
        kind = choices.random()
        if kind < 0.62:
            schedule.append(_call(choices, slot, handler[slot]))
            calls += 1
        elif kind < 0.70:
            schedule.append(Op("pass", number=choices.choice((0.01, 0.1, 1.0, 5.0, 40.0))))
        elif kind < 0.74:
            schedule.append(Op("end", slot, choices.randrange(CONTAINERS), number=choices.choice((0, 0, 1, 7))))
        elif kind < 0.82 and not calm:
            subject = choices.choice(list(FAULTS))
            schedule.append(Op("fault", how=choices.choice(FAULTS[subject]), text=subject))
        elif kind < 0.92 and not calm:
            schedule.append(Op(choices.choice(HARMS), slot, choices.randrange(CONTAINERS)))
        elif kind < 0.97:
            actions = ACTIONS if not calm else ("crash",)
            nth = choices.choice((1, 1, 1, 2, 3))
            schedule.append(Op("failpoint", how=choices.choice(actions), number=nth, text=choices.choice(simulated_names())))
        else:
            schedule.append(Op(choices.choice(("crash", "crash", "restart"))))
    if choices.random() < 0.15:
        name = choices.choice(list(_THEMES))
        slot = choices.randrange(busy)
        theme = [Op("failpoint", how=choices.choice(ACTIONS), number=1, text=name), *_THEMES[name]]
        at = choices.randrange(4)
        schedule[at:at] = [op._replace(slot=slot, text=op.text or handler[slot]) for op in theme]
    if choices.random() < 0.05:
        slot = choices.randrange(busy)
        held = [Op("start", slot, how="wait", text=handler[slot]), Op("hold rootfs", slot), Op("stop pod", slot, how="wait"), Op("let go")]
        schedule[2:2] = held
    if choices.random() < 0.06:
        schedule.insert(choices.randrange(2, 12), Op("power cut"))
    if not any(op.what == "crash" for op in schedule):
        schedule.insert(choices.randrange(5, len(schedule)), Op("crash"))
    return schedule


def _call(choices: random.Random, slot: int, handler: str) -> Op:
    what = choices.choices(CALLS, weights=(3, 4, 6, 4, 3, 1, 2, 4))[0]
    container, how = choices.randrange(CONTAINERS), choices.choice(HOWS)
    return Op(what, slot, container, how, number=choices.choice((0.0, 0.02, 0.05, 2.0)), text=handler)
