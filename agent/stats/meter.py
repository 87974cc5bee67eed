"""What is remembered of a container or pod from one look to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.stats.cgroup import Cgroup
from agent.stats.rate import Rate


@dataclass
class Meter:
    """`cgroup` is None until it is first read."""

    cgroup: Cgroup | None = None
    rate: Rate = field(default_factory=Rate)
