"""`orlop watch`: the daemon's audits without the daemon, for nodes whose CRI is somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from agent import leaks, log, watch
from agent.cli import ledger
from agent.config.settings import Settings
from agent.daemon import layout
from agent.daemon.ending import Ending
from agent.daemon.notify import notify
from agent.leaks import LedgerRead
from agent.network import Inventory
from cri.client import Client


def run(config: Path, socket: str, address: str | None, interval: float, grace: float) -> None:
    """The command; without `address` it is the configuration's.

    Raises:
        OrlopError: the configuration can't be read, or the address can't be had.
    """
    settings = ledger.settings_for(config, socket)
    log.configure(level=settings.log.level, style=settings.log.format)
    audits = partial(_audits, settings, grace)
    where = settings.metrics_address if address is None else address
    asyncio.run(watch.run(where, interval, audits, notify=notify, at_end=Ending().begin))


async def _audits(settings: Settings, grace: float, pauses: Iterable[float]) -> None:
    where = (partial(read, settings), layout.places(settings), Inventory())
    await leaks.watch(*where, pauses=pauses, remembered=partial(_remembered, settings), grace=grace)


async def read(settings: Settings) -> LedgerRead:
    """The ledger of an Orlop that may come and go beside us; on a node that never had one it is empty.

    Raises:
        OrlopError: neither the daemon nor its files can tell.
    """
    # A client for each time: one that stays would wait longer and longer before it looks again whether anybody listens.
    async with Client(str(settings.socket)) as client:
        return await ledger.reader(settings, client)()


async def _remembered(settings: Settings, names: Collection[str]) -> Collection[str]:
    async with Client(str(settings.socket)) as client:
        return await ledger.remembered(settings, client)(names)
