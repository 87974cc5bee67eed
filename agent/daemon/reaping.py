"""How leaks are released on this node, put together for `serve`, which releases its own, and for `orlop reap`."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.aio import in_thread
from agent.leaks import commands
from agent.leaks.own import Doubts, OwnLeaks
from agent.leaks.owned import Remembered
from agent.leaks.owners import ID
from agent.leaks.reap import Reaper
from agent.linux.processes import Processes
from agent.network import Network
from agent.network.chains import remove_chain
from agent.network.inventory import cached_attachment
from agent.store.ledger import KINDS, Ledger, Scope
from agent.store.store import Store

_RESOURCES = "resources"
"""Where rows of the ledger come from, in the quarantine; those of records own nothing."""


@dataclass(frozen=True)
class Plugins:
    """`agent.leaks.reap.Plugins`."""

    network: Network

    async def detach(self, file: Path) -> None:
        await self.network.delete(await in_thread(cached_attachment, file))

    async def remove_chain(self, tool: str, name: str, sandbox: str) -> bool:
        return await in_thread(remove_chain, tool, name, sandbox)


async def look_for_loss(store: Store, processes: Processes, address: str) -> None:
    """A ledger that has nothing of this boot, though shims of ours run, was emptied or removed: what runs is what it had."""
    if any(KINDS[resource.kind].scope is Scope.BOOT for resource in store.ledger.all()):
        return
    found = {row.pid: commands.shim(row.cmdline) for row in await processes.table()}
    if ours := [str(pid) for pid, shim in found.items() if shim is not None and shim.address == address]:
        await store.doubt(f"it is empty, and shims run that were started from it: process {', '.join(ours[:5])}")


def own_leaks(store: Store, reaper: Reaper) -> OwnLeaks:
    """Those of the daemon that has this store."""

    async def doubts() -> Doubts:
        if files := await store.corrupt_files():
            return Doubts(f"the ledger may have lost what runs: look at {', '.join(map(str, files))} and remove it, then they are")
        names: set[str] = set()
        for row in await store.quarantined():
            if row.origin == _RESOURCES:
                names.update(filter(None, (row.name.partition(" ")[2], *re.findall(ID.pattern, row.row.decode(errors="replace")))))
        return Doubts(names=frozenset(names))

    return OwnLeaks(reaper, doubts, time.time)


def remembered(ledger: Ledger) -> Remembered:
    """As the ledger's journal tells, which is read once for each name: what nobody releases is asked for by each audit."""
    known: dict[str, bool] = {}

    async def ask(names: Collection[str]) -> Collection[str]:
        ours = await ledger.remembers([name for name in names if name not in known])
        answers = {name: known.get(name, name in ours) for name in names}
        known.clear()
        known.update(answers)
        return {name for name, mine in answers.items() if mine}

    return ask
