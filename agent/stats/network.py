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
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def parse_interfaces(data: bytes) -> list[Interface]:
    """/proc/net/dev (proc(5)): two lines of headings, then `NAME: 8 numbers received, 8 sent`. Loopback is left out."""
    interfaces = []
    for line in data.splitlines():
        name, colon, counters = line.partition(b":")
        numbers = counters.split()
        if not colon or len(numbers) < 12 or not all(number.isdigit() for number in numbers):
            continue
        # bytes, packets, errors, dropped, each way
        interfaces.append(Interface(name.strip().decode(errors="replace"), *map(int, numbers[0:4]), *map(int, numbers[8:12])))
    return [interface for interface in interfaces if interface.name != _LOOPBACK]
