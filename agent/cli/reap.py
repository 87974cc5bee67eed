"""`orlop reap`: release what an audit finds; asks before it touches what is, or may be, another runtime's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from agent import log
from agent.aio import in_thread
from agent.cli import ledger, output
from agent.cli.audit import row
from agent.config.settings import Settings
from agent.daemon import layout
from agent.daemon.reaping import Plugins
from agent.errdefs import OrlopError
from agent.leaks import Finding
from agent.leaks import audit as find
from agent.leaks.reap import Reaper, Step, plan
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from agent.network import Inventory, Network
from cri.client import Client

RELEASED, LEFT, CANNOT_LOOK = 0, 1, 2
_PLAN = ("kind", "what", "owner", "sure", "since", "pins")
_STEPS = ("kind", "what", "owner", "outcome", "detail")


@dataclass(frozen=True)
class Wish:
    """What the user said."""

    kinds: Collection[str]
    owners: Collection[str]
    dry_run: bool
    yes: bool
    grace: float
    form: str


def run(config: Path, socket: str, wish: Wish) -> int:
    """The command; the exit code."""
    log.configure(level="info")
    try:
        settings = ledger.settings_for(config, socket)
    except OrlopError as error:
        click.echo(f"orlop: {error}", err=True)
        return CANNOT_LOOK

    async def call() -> int:
        async with Client(str(settings.socket)) as client, reaper_of(settings) as reaper:
            return await reap(settings, client, reaper, wish, agreed=_ask)

    return asyncio.run(call())


async def reap(settings: Settings, client: Client | None, reaper: Reaper, wish: Wish, *, agreed: Callable[[str], bool]) -> int:
    """Audit, show what would be released, ask, release; 0: all of it is gone, 1: something is left, 2: could not look.

    `agreed` asks the user a question, about the things of one other owner.
    """
    try:
        where = (ledger.reader(settings, client), layout.places(settings), Inventory())
        found = await find(*where, remembered=ledger.remembered(settings, client), grace=wish.grace)
    except (OSError, OrlopError) as error:
        click.echo(f"orlop: the node could not be audited, nothing was released: {error}", err=True)
        return CANNOT_LOOK
    leaks = plan(found, kinds=wish.kinds, owners=wish.owners)
    if wish.dry_run:
        output.show([row(finding, wish.form) for finding in leaks], _PLAN, wish.form)
        return LEFT if leaks else RELEASED
    allowed = leaks if wish.yes else await in_thread(_allowed, leaks, agreed)
    steps = [step for finding in allowed for step in await reaper.release(finding)]
    output.show([_step(step) for step in steps], _STEPS, wish.form)
    left = len(leaks) - len(allowed) + sum(step.outcome in ("refused", "failed") for step in steps)
    return LEFT if left else RELEASED


def _allowed(leaks: Sequence[Finding], agreed: Callable[[str], bool]) -> list[Finding]:
    refused = set()
    for owner in dict.fromkeys(finding.owner for finding in leaks if finding.owner != "orlop"):
        theirs = [finding for finding in leaks if finding.owner == owner]
        for finding in theirs:
            click.echo(f"{finding.kind.value}  {finding.what}\n    {finding.why}", err=True)
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(finding.kind.value for finding in theirs).items())
        whose = "whose owner is unknown" if owner == "unknown" else f"of {owner}"
        if not agreed(f"Release these {len(theirs)} things {whose} ({kinds})?"):
            refused.add(owner)
    return [finding for finding in leaks if finding.owner not in refused]


def _ask(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        click.echo("\nnobody answers: they stay. --yes releases them without a question", err=True)
        return False


def _step(step: Step) -> dict[str, str]:
    return {
        "kind": step.finding.kind.value,
        "what": step.what,
        "owner": step.finding.owner,
        "outcome": step.outcome,
        "detail": step.detail,
    }


@asynccontextmanager
async def reaper_of(settings: Settings) -> AsyncIterator[Reaper]:
    """One for this node."""
    async with AsyncExitStack() as stack:
        processes, namespaces = Processes(), Namespaces()
        stack.push_async_callback(processes.stop)
        network = Network(processes, namespaces, conf_dir=settings.cni.conf_dir, bin_dirs=settings.cni.bin_dirs)
        stack.push_async_callback(network.stop, 0)

        yield Reaper(processes, Cgroups(), Mounts(), namespaces, Plugins(network))
