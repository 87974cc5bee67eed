"""Counters of a pod's network interfaces, from /proc/net/dev of its network namespace. Pure.

No process need be in that namespace: `Namespaces.interface_counters` enters it by its pin.
"""

from __future__ import annotations

from dataclasses import dataclass

_LOOPBACK = "lo"


@dataclass(frozen=True, slots=True)
class Interface:
    """Counters since the interface was made."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int


def parse_interfaces(data: bytes) -> list[Interface]:
    """/proc/net/dev (proc(5)): two lines of headings, then `NAME: 8 numbers received, 8 sent`. Loopback is left out."""
    interfaces = []
    for line in data.splitlines():
        name, colon, counters = line.partition(b":")
        numbers = counters.split()
        if not colon or len(numbers) < 11 or not all(number.isdigit() for number in numbers):
            continue
        received_bytes, received_errors, sent_bytes, sent_errors = (int(numbers[column]) for column in (0, 2, 8, 10))
        interfaces.append(Interface(name.strip().decode(errors="replace"), received_bytes, received_errors, sent_bytes, sent_errors))
    return [interface for interface in interfaces if interface.name != _LOOPBACK]
