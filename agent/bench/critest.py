"""What `critest -benchmark` wrote (cri-tools, pkg/benchmark): lifecycles, each a list of durations of named operations."""

from __future__ import annotations

import json
from pathlib import Path

from agent.aio import in_thread
from agent.bench.measurements import Measurement
from agent.bench.results import Results
from agent.errdefs import InvalidArgument

_FILES = "*benchmark_data.json"


async def read(results: Results, name: str, directory: Path) -> None:
    """Add the samples of every file that critest left in its `-benchmarking-output-dir` to those of the socket `name`.

    Raises:
        InvalidArgument: there is none, or one that isn't critest's; names the file.
    """
    files = await in_thread(lambda: sorted(directory.glob(_FILES)))
    if not files:
        raise InvalidArgument(f"{directory} has no {_FILES}; is it a -benchmarking-output-dir of `critest -benchmark`?")
    for file in files:
        lifecycle = file.name.removesuffix("_benchmark_data.json")
        for operation, samples in (await in_thread(_durations, file)).items():
            row = Measurement(f"critest.{lifecycle}.{operation}", "critest", f"critest {lifecycle.replace('_', ' ')}: {operation}")
            results.extend([row])
            for seconds in samples:
                results.add(row.key, name, seconds)


def _durations(file: Path) -> dict[str, list[float]]:
    """Seconds by operation."""
    try:
        document = json.loads(file.read_text())
        names = [str(name) for name in document["operationsNames"]]
        points = [[int(value) / 1e9 for value in point["operationsDurationsNs"]] for point in document["datapoints"] or []]
        return {name: [point[number] for point in points] for number, name in enumerate(names)}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidArgument(f"{file} is not what `critest -benchmark` writes: {error!r}") from error
