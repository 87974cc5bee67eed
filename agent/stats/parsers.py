"""The formats of cgroup files (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, accounting/psi.rst). Pure.

The kernel writes these files, so what doesn't look as it should is a file that this kernel writes otherwise: it has no number,
and is no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.stats.sample import Pressure, Stall

_PRESSURE = re.compile(rb"^(some|full) avg10=(\d+\.\d+) avg60=(\d+\.\d+) avg300=(\d+\.\d+) total=(\d+)$", re.MULTILINE)
UNLIMITED = 1 << 62
"""Bytes from which on a limit is none: cgroup v1 has no word for it but the largest multiple of a page that fits."""


def number(data: bytes | None) -> int | None:
    """A file of one number. None for a file that isn't there, and for `max`."""
    text = b"" if data is None else data.strip()
    return int(text) if text.isdigit() else None


def limit(data: bytes | None) -> int | None:
    """A limit in bytes, of v1 or v2; None for none."""
    value = number(data)
    return None if value is None or value >= UNLIMITED else value


def flat(data: bytes) -> Mapping[bytes, bytes]:
    """A file of lines `KEY VALUE`."""
    fields = data.split()
    return dict(zip(fields[::2], fields[1::2], strict=False))


def value(table: Mapping[bytes, bytes], key: bytes) -> int:
    """A number of a `flat` file; 0 if this kernel doesn't count it."""
    return number(table.get(key)) or 0


def pressure(data: bytes | None) -> Pressure | None:
    """A file `*.pressure`. Its totals are microseconds, ours nanoseconds. None if there is none, or PSI is switched off."""
    stalls = {
        kind: Stall(float(avg10), float(avg60), float(avg300), int(total) * 1000)
        for kind, avg10, avg60, avg300, total in _PRESSURE.findall(data or b"")
    }
    return Pressure(stalls[b"some"], stalls.get(b"full")) if b"some" in stalls else None
