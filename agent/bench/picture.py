"""The comparison as a picture (SVG 1.1, one file without script or font of its own): a pure function of the report's document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from agent.bench import report

_COLOURS = ("#9aa5b1", "#2f6fb2", "#d98032", "#4a9d63", "#8a5aa8", "#b24a5a")
_TITLE, _BAR, _VALUE = 430, 380, 230
"""Widths, in pixels: of the titles, of a bar as long as twice the first socket's, of the numbers after it."""
_THICK, _GAP, _TOP = 13, 9, 74
_LONGEST = 2.0


def svg(document: Mapping[str, Any]) -> str:
    """Bars of every measurement that the first socket and another one have, relative to the first; shorter is always better.

    Where more is better the bar is as long as the inverse ratio; the numbers beside it are the measured ones.
    """
    names = document["sockets"]
    shown = [row for row in document["measurements"] if sum(result["ratio"] is not None for result in row["results"]) > 1]
    body, y = [], _TOP
    for row in shown:
        body.append(_text(_TITLE - 12, y + _THICK * len(names) / 2 + 4, row["title"], anchor="end"))
        for number, result in enumerate(row["results"]):
            body += _bar(row, result, _COLOURS[number % len(_COLOURS)], y)
            y += _THICK
        y += _GAP
    one = _TITLE + _BAR / _LONGEST
    body.append(f'<line x1="{one:g}" y1="{_TOP - 6}" x2="{one:g}" y2="{y}" stroke="#333" stroke-dasharray="3 3"/>')
    width, height = _TITLE + _BAR + _VALUE, y + 16
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(16, 24, "orlop bench: medians relative to " + names[0], size=16),
        _text(one, _TOP - 12, "1", anchor="middle"),
        *_legend(names),
        *body,
        "</svg>\n",
    ])  # fmt: skip


def _legend(names: list[str]) -> list[str]:
    parts, x = [], 16.0
    for number, name in enumerate(names):
        parts += [f'<rect x="{x:g}" y="38" width="11" height="11" fill="{_COLOURS[number % len(_COLOURS)]}"/>', _text(x + 16, 48, name)]
        x += 40 + 7 * len(name)
    return [*parts, _text(x, 48, "shorter is better", colour="#666")]


def _bar(row: Mapping[str, Any], result: Mapping[str, Any], colour: str, y: float) -> list[str]:
    numbers = report.spread(result["summary"], row["unit"])
    if not result["ratio"]:
        return [_text(_TITLE + 4, y + _THICK - 3, numbers, colour="#666", size=11)]
    length = 1 / result["ratio"] if row["more_is_better"] else result["ratio"]
    pixels = min(length, _LONGEST) / _LONGEST * _BAR
    label = f"{result['ratio']:.2f}  {numbers}" + (" (bar cut)" if length > _LONGEST else "")
    return [
        f'<rect x="{_TITLE}" y="{y:g}" width="{pixels:.1f}" height="{_THICK - 2}" fill="{colour}"/>',
        _text(_TITLE + pixels + 6, y + _THICK - 3, label, size=11),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222") -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f'<text x="{x:g}" y="{y:g}" text-anchor={quoteattr(anchor)} font-size="{size}" fill="{colour}">{escape(printable)}</text>'
