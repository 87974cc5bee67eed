"""`orlop bench`: what was asked for as a plan, the run, and its report as table, JSON and picture."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from agent.aio import in_thread
from agent.bench import picture, report
from agent.bench.plan import Plan
from agent.bench.run import FAMILIES, run
from agent.cli import output
from agent.errdefs import InvalidArgument


async def bench(plan: Plan, sockets: Sequence[str], form: str, json_file: Path | None, svg_file: Path | None) -> None:
    """Measure, print, write. SIGTERM ends it as Ctrl-C does: after what was made is removed.

    Raises:
        InvalidArgument: a file that can't be written, before anything is measured. Others: as `agent.bench.run.run`.
    """
    if unknown := plan.families - set(FAMILIES):
        raise InvalidArgument(f"--only {min(unknown)!r} is none of {', '.join(FAMILIES)}")
    for file in (json_file, svg_file):
        if file is not None:
            await in_thread(_write, file, "")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    machine = {"kernel": os.uname().release, "cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
    begun = datetime.now(UTC)
    async with run(plan, sockets, lambda text: click.echo(text, err=True)) as results:
        about: dict[str, Any] = {
            "begun": begun.isoformat(timespec="seconds"),
            "seconds": (datetime.now(UTC) - begun).total_seconds(),
            "machine": machine,
            "plan": {name: _plain(value) for name, value in vars(plan).items()},
        }
        document = report.document(results, about)
        text = json.dumps(document, indent=2)
        if json_file is not None:
            await in_thread(_write, json_file, text)
        if svg_file is not None:
            await in_thread(_write, svg_file, picture.svg(document))
        _print(document, text, form)


def _print(document: dict[str, Any], text: str, form: str) -> None:
    if form == "json":
        click.echo(text)
        return
    click.echo(report.machine(document))
    output.show(report.rows(document), report.columns(document), form)
    for reason in report.reasons(document):
        click.echo(reason)


def by_socket(option: str, values: Sequence[str], sockets: Sequence[str]) -> dict[str, list[str]]:
    """Values of an option that is given as SOCKET=VALUE, by socket.

    Raises:
        InvalidArgument: no such form, or a socket that isn't measured.
    """
    known = {socket.removeprefix("unix://") for socket in sockets}
    found: dict[str, list[str]] = {}
    for value in values:
        socket, equals, rest = value.partition("=")
        socket = socket.removeprefix("unix://")
        if not equals or not rest or socket not in known:
            raise InvalidArgument(f"{option} {value!r} must be SOCKET=VALUE with one of the sockets {', '.join(sorted(known))}")
        found.setdefault(socket, []).append(rest)
    return found


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise InvalidArgument(f"{file} can't be written: {error.strerror}") from error


def _plain(value: object) -> object:
    """A value of the plan, as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | frozenset):
        return sorted(map(str, value))
    return str(value) if isinstance(value, Path) else value
