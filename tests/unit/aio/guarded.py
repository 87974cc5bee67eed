"""A process under the loop guard: `python -m tests.unit.aio.guarded`. Prints the calls that were caught, as JSON; the log goes to stderr.

Each function of CAUGHT and LET_THROUGH runs on the loop's thread; those of CAUGHT then once more in a worker thread.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from agent import log, metrics
from agent.aio import in_thread, loopguard
from agent.linux import libc
from agent.pods import facts

DIRECTORY = Path(tempfile.mkdtemp(prefix="orlop-guarded-"))


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def sync(call: Callable[[int], None]) -> None:
    descriptor, name = tempfile.mkstemp(dir=DIRECTORY)
    call(descriptor)
    os.close(descriptor)
    os.unlink(name)


def node_facts() -> None:
    facts.read(cgroup_v2=False, nofile_limit=1)


def mounting() -> None:
    try:
        libc.umount2(DIRECTORY / "nothing", 0)
    except OSError:
        pass
    else:
        raise AssertionError


def failing() -> None:
    try:
        raise ValueError
    except ValueError:
        traceback.format_exc()


CAUGHT: dict[str, Callable[[], object]] = {
    "open": lambda: (DIRECTORY / "file").write_text(""),
    "facts": node_facts,
    "listdir": lambda: os.listdir(DIRECTORY),
    "scandir": lambda: list(os.scandir(DIRECTORY)),
    "mkdir": (DIRECTORY / "below").mkdir,
    "rename": lambda: (DIRECTORY / "below").rename(DIRECTORY / "other"),
    "rmdir": (DIRECTORY / "other").rmdir,
    "unlink": (DIRECTORY / "file").unlink,
    "fsync": lambda: sync(os.fsync),
    "fdatasync": lambda: sync(os.fdatasync),
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "sqlite": lambda: sqlite3.connect(":memory:").close(),
    "getaddrinfo": lambda: socket.getaddrinfo("127.0.0.1", 1),
    "sleep": lambda: time.sleep(0),
    "umount": mounting,
    "cpu": lambda: spin(loopguard.CPU_BUDGET * 1.5),
}
LET_THROUGH: dict[str, Callable[[], object]] = {
    "import": lambda: importlib.import_module("wave"),
    "traceback": failing,
    "null": lambda: Path(os.devnull).read_bytes(),
    "little cpu": lambda: spin(loopguard.CPU_BUDGET / 5),
}


def counts() -> dict[str, float]:
    (metric,) = metrics.loop_blocked.collect()
    return {sample.labels["call"]: sample.value for sample in metric.samples if sample.name.endswith("_total")}


async def probe(work: Callable[[], object]) -> list[str]:
    """Which calls `work` is caught with, on the loop's thread."""
    await asyncio.sleep(0)  # a callback of its own
    before = counts()
    work()
    await asyncio.sleep(0)
    return [call for call, count in counts().items() if count > before.get(call, 0)]


async def main() -> dict[str, list[str]]:
    loopguard.install()
    caught = {name: await probe(work) for name, work in {**CAUGHT, **LET_THROUGH}.items()}
    before = counts()
    for work in CAUGHT.values():
        await in_thread(work)
    caught["in a thread"] = [call for call, count in counts().items() if count > before.get(call, 0)]
    return caught


if __name__ == "__main__":
    log.configure(style="json", stream=sys.stderr)
    (DIRECTORY / "before").write_text("no loop runs yet")
    found = asyncio.run(main())
    (DIRECTORY / "before").unlink()
    DIRECTORY.rmdir()
    print(json.dumps(found))
