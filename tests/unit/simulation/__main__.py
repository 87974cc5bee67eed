"""Runs many schedules, on all cores: `python -m tests.unit.simulation FROM:COUNT [--jobs N] [--keep FILE] [--seconds S]`.

Prints how far it is, and at the end how often each failpoint and each fault has really happened, and failing schedules, made as short as
they can be. Exit code 1 if one failed, or if in a run of 100,000 or more something has happened less than 100 times.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import islice
from pathlib import Path

from tests.unit.simulation.play import play
from tests.unit.simulation.quick import leave_out
from tests.unit.simulation.schedule import generate
from tests.unit.simulation.shrink import minimal, report
from tests.unit.simulation.tally import LONG, Tally, keep, kept, tell, together
from tests.unit.simulation.world import remove, scratch

_AT_ONCE = 50
"""Schedules that a process plays before it says what came of them."""
_FAILURES = 5
"""So many, and no more are begun."""
_SHOWN = 2
_TELL_EVERY = 30.0
_real_time = time.monotonic


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.simulation", description=__doc__)
    parser.add_argument("seeds", help="FROM:COUNT, or one seed, which is then shown")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new schedules after that time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="a file of what came of finished ones; a later run counts the good ones in")
    parser.add_argument("--verbose", action="store_true", help="of one seed, show all steps and what the agent logs")
    options = parser.parse_args()
    first, _, count = options.seeds.partition(":")
    if not count:
        return _show(int(first), options.verbose)
    seeds = range(int(first), int(first) + int(count))
    print(f"seeds {seeds[0]} to {seeds[-1]}", flush=True)
    tally = run_all(seeds, options.jobs, options.seconds, options.keep)
    tell(tally)
    for seed in sorted(tally.failed)[:_SHOWN]:
        _show_shortest(seed)
    return 1 if tally.failed or (tally.schedules >= LONG and tally.rare()) else 0


def run_all(seeds: range, jobs: int, seconds: float, keep_in: Path | None) -> Tally:
    """Schedules from consecutive seeds, until they are through, the time is over, or some have failed."""
    total = together(each for each in kept(keep_in) if not each.failed) if keep_in else Tally()
    began = told = _real_time()
    rest = _portions(seeds, total)
    with ProcessPoolExecutor(jobs, initializer=leave_out) as pool:
        waiting = {pool.submit(run, portion) for portion in islice(rest, jobs + 1)}
        while waiting:
            done = next(as_completed(waiting))
            waiting.discard(done)
            total.add(done.result())
            if keep_in:
                keep(keep_in, done.result())
            now = _real_time()
            if now - told > _TELL_EVERY or done.result().failed:
                told = now
                each, failed = total.cpu / total.schedules * 1000, len(total.failed)
                print(f"{now - began:6.0f} s: {total.schedules} schedules, {each:.1f} ms of a core each, {failed} failed", flush=True)
            if len(total.failed) < _FAILURES and now - began < seconds and (portion := next(rest, None)) is not None:
                waiting.add(pool.submit(run, portion))
    return total


def _portions(seeds: range, done: Tally) -> Iterator[range]:
    played = {first for first, _ in done.seeds}
    for start in range(seeds.start, seeds.stop, _AT_ONCE):
        if start not in played:
            yield range(start, min(start + _AT_ONCE, seeds.stop))


def run(seeds: range) -> Tally:
    """Some schedules, in this process."""
    tally = Tally(seeds=[(seeds[0], seeds[-1])])
    began = time.process_time()
    directory = scratch()
    try:
        for seed in seeds:
            tally.count(seed, play(seed, generate(seed), directory))
    finally:
        remove(directory)
    tally.cpu = time.process_time() - began
    tally.code[_code()] = len(seeds)
    return tally


@cache
def _code() -> str:
    """The commit; with a plus, if what is simulated, or the simulation, isn't as it was committed."""
    top = Path(__file__).parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=top, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _show(seed: int, verbose: bool) -> int:
    outcome = play(seed, generate(seed), scratch(), verbose=verbose)
    print("\n".join(outcome.trace))
    if outcome.problems:
        _show_shortest(seed)
    remove(scratch())
    return 1 if outcome.problems else 0


def _show_shortest(seed: int) -> None:
    try:
        print(f"seed {seed}:", report(seed, *minimal(seed, generate(seed), scratch())), flush=True)
    finally:
        remove(scratch())


if __name__ == "__main__":
    sys.exit(main())
