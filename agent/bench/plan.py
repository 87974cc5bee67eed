"""How much of what is measured: the options of the command, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """Times are seconds, sizes bytes. Mappings are by socket."""

    image: str
    large_image: str = ""
    families: frozenset[str] = frozenset()
    """Which to run; empty: all."""
    pods: int = 30
    parallel: int = 8
    containers: int = 100
    """In the crowd that lists and restarts are measured with, `per_pod` in each pod."""
    per_pod: int = 10
    repeats: int = 30
    """Of each list call and ExecSync."""
    execs: int = 8
    turns: int = 3
    """Of what takes seconds: batches of pods, logs, pulls, restarts."""
    log_bytes: int = 64 << 20
    handler: str = ""
    host_network: bool = False
    cgroup_parent: str = ""
    log_root: Path = Path("/var/log/pods")
    restarts: Mapping[str, str] = field(default_factory=dict)
    """Shell commands that restart a socket's daemon and return."""
    cgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The cgroups that the whole stack of a socket is in; without: the daemon's own, if its shims are below it."""

    critest: Mapping[str, Path] = field(default_factory=dict)
    """Output directories of `critest -benchmark`."""

    @property
    def numbers(self) -> Mapping[str, int]:
        """For the titles of the measurements."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def wants(self, family: str) -> bool:
        return not self.families or family in self.families
