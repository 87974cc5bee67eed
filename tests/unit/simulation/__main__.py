"""Runs many schedules, on all cores: `python -m tests.unit.simulation FROM:COUNT [--seconds S] [--jobs N] [--verbose]`.

Prints how often each failpoint and each fault has really happened, and the first failing schedule, made as short as it can be. Exit
code 1 if one failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from tests.unit.simulation.failures import ACTIONS, simulated_names
from tests.unit.simulation.play import play
from tests.unit.simulation.schedule import FAULTS, HARMS, generate
from tests.unit.simulation.shrink import minimal, report
from tests.unit.simulation.world import remove, scratch

_CHUNK = 20
_real_time = time.monotonic


@dataclass
class Tally:
    """What came of many schedules."""

    schedules: int = 0
    calls: int = 0
    crashes: int = 0
    fewest_calls: int = 1 << 30
    fewest_crashes: int = 1 << 30
    fired: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)
    cpu: float = 0.0

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.calls += other.calls
        self.crashes += other.crashes
        self.fewest_calls = min(self.fewest_calls, other.fewest_calls)
        self.fewest_crashes = min(self.fewest_crashes, other.fewest_crashes)
        self.fired += other.fired
        self.faults += other.faults
        self.failed += other.failed
        self.cpu += other.cpu


def run(seeds: range) -> Tally:
    """Some schedules, in this process."""
    tally = Tally()
    gc.set_threshold(50_000, 20, 100)  # a world is full of cycles, and ends soon
    began = time.process_time()
    directory = scratch()
    try:
        for seed in seeds:
            outcome = play(seed, generate(seed), directory)
            tally.schedules += 1
            tally.calls += outcome.calls
            tally.crashes += outcome.crashes
            tally.fewest_calls = min(tally.fewest_calls, outcome.calls)
            tally.fewest_crashes = min(tally.fewest_crashes, outcome.crashes)
            tally.fired += outcome.fired
            tally.faults += outcome.faults
            if outcome.problems:
                tally.failed.append(seed)
    finally:
        remove(directory)
    tally.cpu = time.process_time() - began
    return tally


def run_all(first: int, count: int, jobs: int, seconds: float = float("inf")) -> Tally:
    """Schedules from consecutive seeds, until they are through, the time is over, or some have failed."""
    total, began = Tally(), _real_time()
    chunks = [range(start, min(start + _CHUNK, first + count)) for start in range(first, first + count, _CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, chunk) for chunk in chunks[: jobs + 1]}
        rest = iter(chunks[jobs + 1 :])
        while waiting:
            done = next(as_completed(waiting))
            waiting.discard(done)
            total.add(done.result())
            if len(total.failed) < 5 and _real_time() - began < seconds and (chunk := next(rest, None)) is not None:
                waiting.add(pool.submit(run, chunk))
    return total


def tell(tally: Tally) -> None:
    """Print the counts."""
    each = tally.cpu / max(1, tally.schedules) * 1000
    print(f"{tally.schedules} schedules, {tally.calls} calls (at least {tally.fewest_calls} each),", end=" ")
    print(f"{tally.crashes} crashes (at least {tally.fewest_crashes} each), {each:.1f} ms of a core each")
    print("failpoints, how often each action was really taken there:")
    for name in simulated_names():
        print(f"  {name:36}", *(f"{action} {tally.fired[f'{name} {action}']:6}" for action in ACTIONS))
    print("faults of programs, and what is done to the node:")
    wanted = [f"{subject} {mode}" for subject, modes in FAULTS.items() for mode in modes] + [*HARMS, "power cut"]
    for name in wanted:
        print(f"  {name:36} {tally.faults[name]:6}")
    missing = [name for name in simulated_names() if not any(tally.fired[f"{name} {action}"] for action in ACTIONS)]
    missing += [name for name in wanted if not tally.faults[name]]
    if missing:
        print("never:", ", ".join(missing))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.simulation", description=__doc__)
    parser.add_argument("seeds", help="FROM:COUNT, or one seed, which is then shown")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new schedules after that time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="of one seed, show all steps and what the agent logs")
    options = parser.parse_args()
    first, _, count = options.seeds.partition(":")
    if not count:
        return _show(int(first), options.verbose)
    print(f"seeds {first} to {int(first) + int(count) - 1}")
    tally = run_all(int(first), int(count), options.jobs, options.seconds)
    tell(tally)
    if tally.failed:
        print("failed:", sorted(tally.failed))
        _show_shortest(min(tally.failed))
    return 1 if tally.failed else 0


def _show(seed: int, verbose: bool) -> int:
    outcome = play(seed, generate(seed), scratch(), verbose=verbose)
    print("\n".join(outcome.trace))
    if outcome.problems:
        _show_shortest(seed)
    remove(scratch())
    return 1 if outcome.problems else 0


def _show_shortest(seed: int) -> None:
    try:
        print(f"seed {seed}:", report(seed, *minimal(seed, generate(seed), scratch())))
    finally:
        remove(scratch())


if __name__ == "__main__":
    sys.exit(main())
