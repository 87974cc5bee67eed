"""What containers and pods use: read from the kernel's own files, not asked of a shim (decisions.md 29).

`agent.pods` keeps a `Meter` for each container and pod: the `Cgroup` that its init was in at the start, and what CPU rates are
computed from. A `Sampler` reads many cgroups at a time: the few numbers that the kubelet decides by, or, as a `Readout`, all that
dashboards show (`descriptors`).
Sandboxed runtimes (Kata, gVisor), whose containers are not in a cgroup of this host, are asked through their shim;
`shim.sample` reads the answer. A cgroup that is gone has no numbers: it isn't at zero.
"""

from agent.stats.cgroup import Cgroup
from agent.stats.meter import Meter
from agent.stats.network import Interface, parse_interfaces
from agent.stats.rate import Rate
from agent.stats.readout import Readout, Subject, Value
from agent.stats.sample import Memory, Pressure, Sample, Stall, Swap
from agent.stats.sampler import Sampler

__all__ = [
    "Cgroup",
    "Interface",
    "Memory",
    "Meter",
    "Pressure",
    "Rate",
    "Readout",
    "Sample",
    "Sampler",
    "Stall",
    "Subject",
    "Swap",
    "Value",
    "parse_interfaces",
]
