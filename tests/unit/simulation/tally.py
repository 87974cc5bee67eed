"""What came of many schedules: counted, kept in a file so that a long run can be cut off and taken up again, and printed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.simulation.failures import ACTIONS, simulated_names
from tests.unit.simulation.play import Outcome
from tests.unit.simulation.schedule import FAULTS, HARMS

ENOUGH = 100
"""How often each failpoint, fault and harm has to happen in a run of `LONG` schedules."""
LONG = 100_000


@dataclass
class Tally:
    """Counts of some schedules. `code` is the commit that they were played on."""

    schedules: int = 0
    calls: int = 0
    crashes: int = 0
    fewest_calls: int = 1 << 30
    fewest_crashes: int = 1 << 30
    fired: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    cpu: float = 0.0
    seeds: list[tuple[int, int]] = field(default_factory=list)
    code: Counter[str] = field(default_factory=Counter)

    def count(self, seed: int, outcome: Outcome) -> None:
        self.schedules += 1
        self.calls += outcome.calls
        self.crashes += outcome.crashes
        self.fewest_calls = min(self.fewest_calls, outcome.calls)
        self.fewest_crashes = min(self.fewest_crashes, outcome.crashes)
        self.fired.update(outcome.fired)
        self.faults.update(outcome.faults)
        if outcome.problems:
            self.failed[seed] = outcome.problems[0]

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.calls += other.calls
        self.crashes += other.crashes
        self.fewest_calls = min(self.fewest_calls, other.fewest_calls)
        self.fewest_crashes = min(self.fewest_crashes, other.fewest_crashes)
        self.fired.update(other.fired)
        self.faults.update(other.faults)
        self.failed |= other.failed
        self.cpu += other.cpu
        self.seeds += other.seeds
        self.code.update(other.code)

    def happened(self) -> dict[str, int]:
        """How often each failpoint did something, each fault came, and each harm was done."""
        found = {name: sum(self.fired[f"{name} {action}"] for action in ACTIONS) for name in simulated_names()}
        return found | {name: self.faults[name] for name in faults()}

    def rare(self) -> list[str]:
        return [f"{name} ({times})" for name, times in self.happened().items() if times < ENOUGH]


def faults() -> list[str]:
    """All that is done to a node and to what runs on it."""
    return [f"{subject} {mode}" for subject, modes in FAULTS.items() for mode in modes] + [*HARMS, "power cut"]


def kept(path: Path) -> Iterator[Tally]:
    """The tallies in a file, one a line; the last may have been cut off."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        for name in ("fired", "faults", "code"):
            fields[name] = Counter(fields[name])
        fields["failed"] = {int(seed): text for seed, text in fields["failed"].items()}
        fields["seeds"] = [(first, last) for first, last in fields["seeds"]]
        yield Tally(**fields)


def keep(path: Path, tally: Tally) -> None:
    """Add one to a file."""
    with path.open("a") as file:
        file.write(json.dumps(vars(tally)) + "\n")


def together(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for each in tallies:
        total.add(each)
    return total


def tell(tally: Tally) -> None:
    """Print the counts."""
    each = tally.cpu / max(1, tally.schedules) * 1000
    print(f"{tally.schedules} schedules, {tally.calls} calls (at least {tally.fewest_calls} each),", end=" ")
    print(f"{tally.crashes} crashes (at least {tally.fewest_crashes} each), {each:.1f} ms of a core each")
    print("seeds:", ", ".join(f"{first} to {last}" for first, last in _joined(tally.seeds)))
    print("code:", ", ".join(f"{code} ({schedules} schedules)" for code, schedules in tally.code.items()))
    print(f"{'failpoints, how often each action was really taken there:':58}", *(f"{action:>7}" for action in (*ACTIONS, "all")))
    happened = tally.happened()
    for name in simulated_names():
        print(f"  {name:56}", *(f"{tally.fired[f'{name} {action}']:7}" for action in ACTIONS), f"{happened[name]:7}")
    print("faults of programs, and what is done to the node:")
    for name in faults():
        print(f"  {name:56} {happened[name]:7}")
    print(f"under {ENOUGH}:", ", ".join(tally.rare()) or "none")
    print("failed:", "".join(f"\n  seed {seed}: {problem}" for seed, problem in sorted(tally.failed.items())) or "none")


def _joined(seeds: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges, those that follow on another as one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(seeds):
        if found and found[-1][1] + 1 == first:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found
