"""`orlop audit`: the ledger against the node. Asks the running daemon for its ledger; reads the files of one that is down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from agent import log
from agent.cli import output
from agent.config.settings import Settings, load
from agent.daemon import layout
from agent.errdefs import DataLoss, InvalidArgument, OrlopError, Unavailable
from agent.leaks import Finding, LedgerRead, ReadLedger, State
from agent.leaks import audit as find
from agent.network import Inventory
from agent.store.ledger import Kind, Resource
from agent.store.ledger import State as EntryState
from agent.store.store import Store
from cri.api import admin_pb2
from cri.client import Client

COLUMNS = ("kind", "what", "owner", "state", "since", "why", "releases")
CLEAN, LEAKS, CANNOT_LOOK = 0, 1, 2
_ANSWER = 10.0
"""Seconds for the daemon to tell its ledger, which it has in memory."""


def run(config: Path, socket: str, form: str) -> int:
    """The command. `socket` is what the user gave: the daemon whose ledger is compared has to be that of `config`."""
    log.configure(level="warning")
    try:
        settings = load(config)
        if socket not in (str(Settings.socket), str(settings.socket)):
            raise InvalidArgument(
                f"{socket} is not the socket of {config}: an audit needs the configuration of the daemon it asks (--config)"
            )
    except OrlopError as error:
        click.echo(f"orlop: {error}", err=True)
        return CANNOT_LOOK

    async def call() -> int:
        async with Client(str(settings.socket)) as client:
            return await audit(settings, client, form)

    return asyncio.run(call())


async def audit(settings: Settings, client: Client | None, form: str) -> int:
    """Print what is found; the exit code: 0 clean, 1 something is leaked, missing or not released, 2 it could not be looked at.

    `client` is one of the daemon of these `settings`; None: read its files.
    """
    try:
        found = await find(_ledger(settings, client), layout.places(settings), Inventory())
    except (OSError, OrlopError) as error:
        click.echo(f"orlop: the node could not be audited: {error}", err=True)
        return CANNOT_LOOK
    if found or form == "json":
        output.show([_row(finding, form) for finding in found], COLUMNS, form)
    else:
        click.echo("clean: the node is as the ledger says")
    return _exit_code(found)


def _exit_code(found: Sequence[Finding]) -> int:
    if any(finding.state is not State.UNKNOWN for finding in found):
        return LEAKS
    return CANNOT_LOOK if found else CLEAN


def _row(finding: Finding, form: str) -> dict[str, Any]:
    row = finding.to_json()
    if form != "json":
        row["since"] = "" if finding.since is None else output.age(int(finding.since * 1e9))
    return row


def _ledger(settings: Settings, client: Client | None) -> ReadLedger:
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


def _resource(entry: admin_pb2.Resource) -> Resource:
    """Raises DataLoss: a daemon of another version, whose ledger this command doesn't understand."""
    try:
        return Resource(
            kind=Kind(entry.kind),
            key=entry.key,
            sandbox=entry.sandbox,
            container=entry.container,
            state=EntryState(entry.state),
            data=json.loads(entry.data),
            attempts=entry.attempts,
            error=entry.error,
            created=entry.created,
            failed_since=entry.failed_since or None,
            next_attempt=entry.next_attempt or None,
        )
    except ValueError as error:
        raise DataLoss(f"the daemon has a ledger entry {entry.kind} {entry.key} that this command doesn't know: {error}") from error
