"""Results as a document for programs, and as rows for people. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agent.bench.measurements import Measurement, Unit
from agent.bench.results import Results, ratio, summary

SCHEMA = 1
"""Of the document; another number when a key changes its meaning or goes."""


def document(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: each measurement with its samples by socket, their summary, and the ratio of the medians to the first socket's.

    Values are in the measurement's `unit`: "s", "B", "B/s" or "1/s". A socket without a `summary` has no samples, and a `reason`;
    with both, it has no further samples for that reason. `about` is what the caller knows of the run: "begun", "seconds", "machine"
    ("kernel", "cpus", "load_before"), "plan".
    """
    return {
        "schema": SCHEMA,
        **about,
        "sockets": results.names,
        "measurements": [
            {
                "key": row.key,
                "family": row.family,
                "title": row.title,
                "unit": row.unit,
                "more_is_better": row.more_is_better,
                "results": [_result(results, row, name) for name in results.names],
            }
            for row in results.measurements
        ],
    }


def _result(results: Results, row: Measurement, name: str) -> dict[str, Any]:
    samples = results.of(row.key, name)
    own = summary(samples.values)
    return {
        "socket": name,
        "samples": samples.values,
        "summary": asdict(own) if own else None,
        "ratio": ratio(own, summary(results.of(row.key, results.names[0]).values)),
        "reason": samples.reason or ("" if own else "it was not measured with this socket"),
    }


def machine(document: Mapping[str, Any]) -> str:
    """Where and when, in one line; a machine that has other things to do is called so, since they are in the numbers."""
    about = document["machine"]
    load = f"load {about['load_before']:.1f} before" + (": a busy machine" if about["load_before"] > about["cpus"] / 4 else "")
    return f"{document['begun']}, {document['seconds']:.0f} s, Linux {about['kernel']}, {about['cpus']} CPUs, {load}"


def columns(document: Mapping[str, Any]) -> list[str]:
    """Of the table: each socket's numbers, and for all but the first the ratio."""
    first, *others = document["sockets"]
    return ["measurement", first, *(column for name in others for column in (name, _ratio_column(name, others)))]


def rows(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row per measurement: median, distance of the middle sample from it, 95th percentile; "n/a" where there is nothing."""
    others = document["sockets"][1:]
    found = []
    for measurement in document["measurements"]:
        row = {"measurement": measurement["title"]}
        for result in measurement["results"]:
            name = result["socket"]
            row[name] = spread(result["summary"], measurement["unit"])
            if name in others:
                row[_ratio_column(name, others)] = "" if result["ratio"] is None else f"{result['ratio']:.2f}"
        found.append(row)
    return found


def reasons(document: Mapping[str, Any]) -> list[str]:
    """A sentence for whatever is missing or incomplete; measurements with one reason in common stand in one."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for measurement in document["measurements"]:
        for result in measurement["results"]:
            if result["reason"]:
                what = "n/a" if result["summary"] is None else f"only {result['summary']['count']} samples"
                by_reason.setdefault((result["socket"], result["reason"]), []).append(f"{measurement['title']} ({what})")
    return [f"{socket}: {', '.join(titles)}: {reason}" for (socket, reason), titles in by_reason.items()]


def spread(numbers: Mapping[str, float] | None, unit: Unit) -> str:
    """A summary in one cell."""
    if numbers is None:
        return "n/a"
    scale, name = _scale(numbers["median"], unit)
    text = f"{_short(numbers['median'] / scale)} {name}"
    if numbers["count"] > 1:
        text += f" ±{_short(numbers['mad'] / scale)} (p95 {_short(numbers['p95'] / scale)})"
    return text


def _ratio_column(name: str, others: list[str]) -> str:
    return "ratio" if len(others) == 1 else f"ratio of {name}"


def _scale(value: float, unit: Unit) -> tuple[float, str]:
    """What to divide by, and what the quotient is."""
    if unit == "s":
        return (1.0, "s") if value >= 1 else (1e-3, "ms")
    if unit == "B":
        return float(1 << 20), "MiB"
    return (1e6, "MB/s") if unit == "B/s" else (1.0, "/s")


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.1f}" if abs(rounded) >= 10 else f"{rounded:.2f}"
