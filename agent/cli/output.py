"""Tables for people, JSON for programs; the one place that prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SENTENCES = ("what", "pins", "why", "releases", "measurement")
"""Columns that may take several lines."""
_NO_WIDTH = 1_000_000


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], output: str) -> None:
    """Print `rows` as a table of `columns`, or all of them as a JSON list."""
    if output == "json":
        click.echo(json.dumps(list(rows), indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper().replace("_", " "), no_wrap=column not in _SENTENCES, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column, ""))) for column in columns))
    # A pipe has no width: nothing is wrapped or cut there.
    Console(width=None if sys.stdout.isatty() else _NO_WIDTH).print(table)


def _cell(value: object) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def printable(text: str) -> str:
    """As text that can't do anything to a terminal: names come from whoever made the pod or the image."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def age(nanoseconds: int) -> str:
    """How long ago, in the largest unit that fits: 45s, 12m, 3h, 8d."""
    seconds = max(0, time.time_ns() - nanoseconds) // 10**9
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """Bytes as 12.3MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"
