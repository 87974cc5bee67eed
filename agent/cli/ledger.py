"""Where commands that judge the node get the ledger: from the daemon that runs, or from the files of one that is down."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from agent.config.settings import Settings, load
from agent.errdefs import DataLoss, InvalidArgument, Unavailable
from agent.leaks import LedgerRead, ReadLedger
from agent.leaks.owned import Remembered
from agent.store.ledger import Entry, Kind, Resource, State
from agent.store.store import Store
from cri.api import admin_pb2
from cri.client import Client

_ANSWER = 10.0
"""Seconds for the daemon to tell its ledger, which it has in memory."""


def settings_for(config: Path, socket: str) -> Settings:
    """The settings of `config`. `socket` is what the user gave: the daemon that is asked has to be that of `config`.

    Raises:
        InvalidArgument: it isn't, or the file can't be read.
    """
    settings = load(config)
    if socket not in (str(Settings.socket), str(settings.socket)):
        raise InvalidArgument(
            f"{socket} is not the socket of {config}: the node is judged by the configuration of the daemon asked (--config)"
        )
    return settings


def reader(settings: Settings, client: Client | None) -> ReadLedger:
    """`client` is one of the daemon of these `settings`; None: read its files. A node that never had a daemon has an empty ledger."""

    async def read() -> LedgerRead:
        if client is not None:
            try:
                answer = await client.call("Ledger", admin_pb2.LedgerRequest(), timeout=_ANSWER)
            except Unavailable:
                pass  # it is down, or starting: then its lock says so
            else:
                return LedgerRead([_resource(entry) for entry in answer.resources], served=True)
        store = await Store.open_read_only(settings.state_dir, settings.root_dir)
        try:
            return LedgerRead(store.ledger.all(), served=False)
        finally:
            await store.close()  # at once: its lock would keep a daemon from starting

    return read


def remembered(settings: Settings, client: Client | None) -> Remembered:
    """Which things bear nobody's name and were once in this ledger, as the daemon or its files tell."""

    async def ask(names: Collection[str]) -> Collection[str]:
        return [name for name in names if await history(settings, client, name)]

    return ask


async def history(settings: Settings, client: Client | None, identifier: str) -> Sequence[Entry]:
    """What happened to the resources of a sandbox or container, or to what has this key; oldest first.

    Raises:
        OrlopError: neither the daemon nor its files can tell.
    """
    if client is not None:
        try:
            answer = await client.call("History", admin_pb2.HistoryRequest(id=identifier), timeout=_ANSWER)
        except Unavailable:
            pass
        else:
            return [Entry(one.time, one.kind, one.key, "", one.container, one.state, one.detail) for one in answer.transitions]
    store = await Store.open_read_only(settings.state_dir, settings.root_dir)
    try:
        return await store.ledger.history(sandbox=identifier, container=identifier, key=identifier)
    finally:
        await store.close()


def _resource(entry: admin_pb2.Resource) -> Resource:
    """Raises DataLoss: a daemon of another version, whose ledger this command doesn't understand."""
    try:
        return Resource(
            kind=Kind(entry.kind),
            key=entry.key,
            sandbox=entry.sandbox,
            container=entry.container,
            state=State(entry.state),
            data=json.loads(entry.data),
            attempts=entry.attempts,
            error=entry.error,
            created=entry.created,
            failed_since=entry.failed_since or None,
            next_attempt=entry.next_attempt or None,
        )
    except ValueError as error:
        raise DataLoss(f"the daemon has a ledger entry {entry.kind} {entry.key} that this command doesn't know: {error}") from error
