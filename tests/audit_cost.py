"""`make audit-cost PODS=250`: what one of the daemon's audits costs, in CPU time, on a node with so many real pods.

Each pod is a shim and a container's process, on a node of its own (`tests/e2e/enter`). The audit is the daemon's, made here again and
again: the process that makes it does nothing else, so its CPU time is the audit's, that of the kernel in its system calls included.
With once a minute, 600 ms are 1 % of a core.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.cli.ledger import reader
from agent.config.settings import load
from agent.daemon import layout
from agent.leaks import LedgerRead, audit
from agent.network import Inventory
from cri.client import Client
from tests.e2e import toolbox
from tests.e2e.client import BUSYBOX
from tests.e2e.daemon import Daemon
from tests.e2e.node import CGROUP_PARENT
from tests.images import busybox_image

AT_A_TIME = 4
AUDITS = 20
SHARE = 0.01


def main(pods: int) -> int:
    """Run the pods, measure, print; 1 if an audit costs more than `SHARE` of a core."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), toolbox.Pair("2.1", "crun"), name="cost", log_settings='level = "warning"')
        daemon.start()
        busybox_image(Path(folder, "busybox.tar"), BUSYBOX)
        daemon.orlop("image", "import", Path(folder, "busybox.tar"))
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for number, _ in enumerate(pool.map(lambda _: daemon.client.run_container(daemon.client.run_pod()), range(pods)), 1):
                if number % 50 == 0:
                    print(f"{number} pods run", flush=True)
        spent = asyncio.run(measured(daemon))
        print(f"an audit with {pods} pods, {len(os.listdir('/proc')):,} entries in /proc: {spent:.0f} ms of CPU, the median of {AUDITS}")
        print(f"once a minute that is {spent / 60_000:.2%} of a core")
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda pod: remove(daemon, pod.id), daemon.client.pods()))
        daemon.stop()
    return 0 if spent / 60_000 < SHARE else 1


def remove(daemon: Daemon, pod: str) -> None:
    daemon.client.stop_pod(pod)
    daemon.client.remove_pod(pod)


async def measured(daemon: Daemon) -> float:
    """Milliseconds of one audit, the median."""
    settings = load(daemon.config)
    async with Client(str(settings.socket)) as client:
        ledger = await reader(settings, client)()

    async def read() -> LedgerRead:
        return ledger

    spent = []
    for _ in range(AUDITS + 1):
        begin = cpu_seconds()
        found = await audit(read, layout.places(settings), Inventory())
        spent.append((cpu_seconds() - begin) * 1000)
        assert found == [], found[:3]
    return statistics.median(spent[1:])  # the first one imports


def cpu_seconds() -> float:
    """Of this process and of those that it started and waited for, such as iptables-save."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    if not CGROUP_PARENT:
        toolbox.prepare()
        enter = str(Path(__file__).parent / "e2e/enter")
        os.execv(enter, [enter, sys.executable, "-m", "tests.audit_cost", *sys.argv[1:]])
    sys.exit(main(int(sys.argv[1])))
