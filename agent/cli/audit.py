"""`orlop audit`: ledger and other runtimes against the node, as a table, as JSON, or as one line for a node-problem-detector."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from agent import log
from agent.cli import ledger, output
from agent.config.settings import Settings
from agent.daemon import layout
from agent.errdefs import OrlopError
from agent.leaks import Finding, State
from agent.leaks import audit as find
from agent.network import Inventory
from cri.client import Client

COLUMNS = ("kind", "what", "owner", "state", "sure", "since", "pins", "why", "releases")
CLEAN, LEAKS, CANNOT_LOOK = 0, 1, 2
"""Exit codes; node-problem-detector's OK, NonOK and Unknown are the same numbers."""
_NPD_LENGTH = 80
"""What it shows of a line (`max_output_length`)."""


def run(config: Path, socket: str, form: str, grace: float) -> int:
    """The command; `form` is "table", "json" or "npd"."""
    log.configure(level="warning")
    try:
        settings = ledger.settings_for(config, socket)
    except OrlopError as error:
        return _cannot_look(str(error), form)

    async def call() -> int:
        async with Client(str(settings.socket)) as client:
            return await audit(settings, client, form, grace)

    return asyncio.run(call())


async def audit(settings: Settings, client: Client | None, form: str, grace: float) -> int:
    """Print what is found; the exit code: 0 clean, 1 something is leaked, missing or not released, 2 it could not be looked at.

    `client` is one of the daemon of these `settings`; None: read its files.
    """
    try:
        where = (ledger.reader(settings, client), layout.places(settings), Inventory())
        found = await find(*where, remembered=ledger.remembered(settings, client), grace=grace)
    except (OSError, OrlopError) as error:
        return _cannot_look(f"the node could not be audited: {error}", form)
    if form == "npd":
        click.echo(_line(found))
    elif found or form == "json":
        output.show([row(finding, form) for finding in found], COLUMNS, form)
    else:
        click.echo("clean: the node is as the ledger says")
    return _exit_code(found)


def row(finding: Finding, form: str) -> dict[str, Any]:
    """A finding for `output.show`."""
    cells = finding.to_json()
    if form != "json":
        cells["since"] = "" if finding.since is None else output.age(int(finding.since * 1e9))
    return cells


def _exit_code(found: Sequence[Finding]) -> int:
    if any(finding.state is not State.UNKNOWN for finding in found):
        return LEAKS
    return CANNOT_LOOK if found else CLEAN


def _cannot_look(reason: str, form: str) -> int:
    if form == "npd":
        click.echo(f"audit failed: {reason}"[:_NPD_LENGTH])
    click.echo(f"orlop: {reason}", err=True)
    return CANNOT_LOOK


def _line(found: Sequence[Finding]) -> str:
    """What a node-problem-detector reports as the condition's message: the counts first, since it cuts the rest off."""
    wrong = [finding for finding in found if finding.state is not State.UNKNOWN]
    if not wrong:
        return "something can't be looked at; see `orlop audit`" if found else "nothing is leaked"
    parts = []
    for state, number in Counter(finding.state for finding in wrong).items():
        kinds = Counter(finding.kind for finding in wrong if finding.state is state)
        parts.append(f"{number} {state}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    text = "; ".join(parts)
    since = [finding.since for finding in wrong if finding.since is not None]
    oldest = f"; oldest {output.age(int(min(since) * 1e9))}" if since and min(since) < time.time() else ""
    return text[: _NPD_LENGTH - len(oldest)] + oldest
