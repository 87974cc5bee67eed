"""`orlop explain`: everything about one pod, container, path or process, and what happened to it so far."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from agent import log
from agent.aio import in_thread
from agent.cli import ledger, lookup, output
from agent.config.settings import Settings
from agent.daemon import layout
from agent.errdefs import NotFound, Unavailable
from agent.leaks import LedgerRead
from agent.leaks import audit as find
from agent.leaks.explain import Explanation, Subject, advice, explain, of_id, resolve
from agent.leaks.node import Node
from agent.linux.mounts import Mounts
from agent.network import Inventory
from agent.store.ledger import Entry, Resource
from cri.client import Client


async def run(settings: Settings, client: Client | None, wanted: str, form: str, mounts: Mounts | None = None) -> None:
    """Print it; `form` is "table" or "json". `client` is one of the daemon of these `settings`; None: read its files.

    Raises:
        NotFound: nothing of that name is known. OrlopError: the ledger can't be read.
        OSError: the node can't be looked at.
    """
    log.configure(level="warning")
    read_ledger, places = ledger.reader(settings, client), layout.places(settings)
    read = await read_ledger()
    node = await in_thread(lambda: Node.take(places, served=read.served, now=time.time()))
    subject = await _subject(wanted, read, node, client)
    findings = await find(read_ledger, places, Inventory(), remembered=ledger.remembered(settings, client))
    explanation = await explain(subject, read.resources, findings, node, mounts or Mounts())
    timeline = await _timeline(settings, client, subject)
    if form == "json":
        click.echo(json.dumps({**explanation.to_json(), "timeline": [entry.to_json() for entry in timeline]}, indent=2))
    else:
        for line in _lines(explanation, timeline, served=read.served):
            click.echo(output.printable(line))


def explain_command(config: Path, socket: str, wanted: str, form: str) -> None:
    """The command. Raises OrlopError."""
    settings = ledger.settings_for(config, socket)

    async def call() -> None:
        async with Client(str(settings.socket)) as client:
            await run(settings, client, wanted, form)

    try:
        asyncio.run(call())
    except OSError as error:
        raise Unavailable(f"the node can't be looked at: {error}") from error


async def _subject(wanted: str, read: LedgerRead, node: Node, client: Client | None) -> Subject:
    """Names are known to the daemon alone; what is in no list any more, and processes and paths, to the ledger and the node."""
    try:
        return resolve(wanted, read.resources, node)
    except NotFound as error:
        if client is None or not read.served or wanted.startswith("/"):
            raise
        unresolved = error
    for look_up in (lookup.pod, lookup.container):
        try:
            found = await look_up(client, wanted)
        except NotFound:
            continue
        subject = of_id(found.id, read.resources)
        return replace(subject, title=f"{subject.title} ({wanted})")
    raise unresolved


async def _timeline(settings: Settings, client: Client | None, subject: Subject) -> list[Entry]:
    entries = {entry: None for identifier in subject.ids for entry in await ledger.history(settings, client, identifier)}
    return sorted(entries, key=lambda entry: entry.at)


def _lines(explanation: Explanation, timeline: Sequence[Entry], *, served: bool) -> Iterator[str]:
    yield explanation.subject.title
    yield from (f"  {fact}" for fact in explanation.facts)
    yield from _section("holds", [_resource(one) for one in explanation.resources])
    yield from _section("held by", [line for held in explanation.held for line in (held.what, *(f"  {by}" for by in held.by))])
    pending = [one for one in explanation.resources if one.failed_since is not None]
    yield from _section("releases that are pending", [line for one in pending for line in _pending(one, served=served)])
    found = [line for one in explanation.findings for line in (f"{one.kind} {one.what}: {one.state}, {one.sure}", f"  {one.why}")]
    yield from _section("an audit finds", found)
    yield from _section("what happened", [_transition(entry) for entry in timeline])


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: nothing"
    yield from (f"  {line}" for line in lines)


def _resource(resource: Resource) -> str:
    return f"{resource.kind.value:12} {resource.state.value:9} {output.age(int(resource.created * 1e9)):>4}  {resource.key}"


def _pending(resource: Resource, *, served: bool) -> Iterator[str]:
    now = time.time()
    yield f"{resource.kind.value} {resource.key}"
    since = output.age(int((resource.failed_since or now) * 1e9))
    yield f"  tried {resource.attempts} times in the last {since}; the last error: {resource.error}"
    if not served:
        yield "  next: when the daemon runs again, which it doesn't"
    elif resource.next_attempt is not None:
        yield f"  next: in {max(0, round(resource.next_attempt - now))} s"
    else:
        yield "  next: it is being tried now"
    yield f"  what you can do: {advice(resource)}"


def _transition(entry: Entry) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    detail = f": {entry.detail}" if entry.detail else ""
    return f"{moment}.{int(entry.at % 1 * 1000):03}  {entry.transition:9} {entry.kind:12} {entry.key}{detail}"
