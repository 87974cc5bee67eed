"""CPU use per second, from two samples."""

from __future__ import annotations

_SHORTEST = 1_000_000_000
"""Nanoseconds. Several may ask (kubelet, crictl), each at its own pace, and the kernel counts in ticks: less time is no base."""


class Rate:
    """Remembers samples of one counter of nanoseconds, as far back as a rate needs."""

    def __init__(self) -> None:
        self._base: tuple[int, int] | None = None
        self._newest: tuple[int, int] | None = None
        self._rate: int | None = None

    def update(self, clock: int, usage: int) -> int | None:
        """Nano-cores, on average since the last sample that is a second old. None without one, and for a counter that began anew.

        `clock` is monotonic and `usage` a counter, both in ns. A sample that is already known gets the answer that it got.
        """
        newest = self._newest
        if newest is None or usage < newest[1]:
            self._base, self._newest, self._rate = None, (clock, usage), None
            return None
        if clock <= newest[0]:
            return self._rate
        if clock - newest[0] >= _SHORTEST:
            self._base, self._newest = newest, (clock, usage)
        if self._base is None:
            return None
        began, used = self._base
        self._rate = (usage - used) * 1_000_000_000 // (clock - began)
        return self._rate
