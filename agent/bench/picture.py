"""The comparison as a picture (SVG 1.1, one file without script or font of its own): a pure function of the report's document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from agent.bench import report

_COLOURS = ("#9aa5b1", "#2f6fb2", "#d98032", "#4a9d63", "#8a5aa8", "#b24a5a")
_TITLE, _BAR, _VALUE = 430, 380, 260
"""Widths, in pixels: of the titles, of a bar as long as `_LONGEST` of the first socket's, of the numbers after it."""
_THICK, _GAP, _TOP = 14, 9, 92
_LONGEST = 2.0


def svg(document: Mapping[str, Any]) -> str:
    """Bars of every measurement that the first socket and another one have, relative to the first; shorter is always better.

    Where more is better the bar is as long as the inverse ratio; the numbers beside it are the measured ones. A whisker is the median
    deviation to both sides; a bar that would be longer than the picture ends in points.
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
    width, height = _TITLE + _BAR + _VALUE, y + 16
    size, view = f'width="{width}" height="{height}"', f'viewBox="0 0 {width} {height}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} font-family="system-ui, sans-serif" font-size="12">',
        f'<rect {size} fill="#fff"/>',
        _text(16, 24, f"orlop bench: medians relative to {names[0]}; shorter is better", size=16),
        _text(16, 42, report.machine(document), colour="#666"),
        *_legend(names),
        f'<line x1="{one:g}" y1="{_TOP - 8}" x2="{one:g}" y2="{y}" stroke="#333" stroke-dasharray="3 3"/>',
        *body,
        "</svg>\n",
    ])  # fmt: skip


def _legend(names: list[str]) -> list[str]:
    parts, x = [], 16.0
    for number, name in enumerate(names):
        parts += [f'<rect x="{x:g}" y="56" width="11" height="11" fill="{_COLOURS[number % len(_COLOURS)]}"/>', _text(x + 16, 66, name)]
        x += 40 + 7 * len(name)
    return parts


def _bar(row: Mapping[str, Any], result: Mapping[str, Any], colour: str, y: float) -> list[str]:
    numbers, beside = report.spread(result["summary"], row["unit"]), _TITLE + _BAR + 8
    if not result["ratio"]:
        return [_text(beside + 38, y + _THICK - 3, numbers, colour="#666", size=11)]
    length = 1 / result["ratio"] if row["more_is_better"] else result["ratio"]
    pixels = min(length, _LONGEST) / _LONGEST * _BAR
    parts = [
        f'<rect x="{_TITLE}" y="{y:g}" width="{pixels:.1f}" height="{_THICK - 3}" fill="{colour}"/>',
        _text(beside, y + _THICK - 3, f"{result['ratio']:.2f}", size=11),
        _text(beside + 38, y + _THICK - 3, numbers, colour="#666", size=11),
    ]
    middle = y + (_THICK - 3) / 2
    if length > _LONGEST:
        parts.append(_text(_TITLE + _BAR - 18, y + _THICK - 5, "···", colour="#fff"))
    elif spread := result["summary"]["mad"] / result["summary"]["median"] * pixels:
        ends = f'x1="{_TITLE + max(0.0, pixels - spread):.1f}" x2="{_TITLE + min(pixels + spread, _BAR):.1f}"'
        parts.append(f'<line {ends} y1="{middle:g}" y2="{middle:g}" stroke="#222" stroke-width="1.5"/>')
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222") -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(printable)}</text>'
