"""`agent.stats` for the verbs: where a container's cgroup is, and samples as messages of the CRI.

What isn't accounted for is left out of a message, never zero.
"""

from __future__ import annotations

from agent.pods.context import Pods
from agent.pods.registry import Container
from agent.stats import Cgroup, Interface, Meter, Pressure, Sample, Stall
from cri.api import api_pb2 as cri

_DEFAULT_INTERFACE = "eth0"
"""As the network attachment names it (`agent.network`), and the kubelet and containerd take for granted."""
_Number = cri.UInt64Value


def cgroup_of(pods: Pods, live: Container) -> Cgroup:
    """Where the container was put, which its record knows; of no use for one that isn't in a cgroup of this host."""
    if live.meter.cgroup is None:
        live.meter.cgroup = pods.stats.of_process(live.record.cgroups)
    return live.meter.cgroup


def cpu(sample: Sample, meter: Meter) -> cri.CpuUsage | None:
    if sample.cpu is None:
        return None
    rate = meter.rate.update(sample.clock, sample.cpu)
    return cri.CpuUsage(
        timestamp=sample.time,
        usage_core_nano_seconds=_Number(value=sample.cpu),
        usage_nano_cores=_optional(rate),
        psi=_pressure(sample.cpu_pressure),
    )


def memory(sample: Sample) -> cri.MemoryUsage | None:
    found = sample.memory
    if found is None:
        return None
    return cri.MemoryUsage(
        timestamp=sample.time,
        working_set_bytes=_Number(value=found.working_set),
        available_bytes=_optional(found.available),
        usage_bytes=_Number(value=found.usage),
        rss_bytes=_Number(value=found.rss),
        page_faults=_Number(value=found.page_faults),
        major_page_faults=_Number(value=found.major_page_faults),
        psi=_pressure(sample.memory_pressure),
    )


def swap(sample: Sample) -> cri.SwapUsage | None:
    found = sample.swap
    if found is None:
        return None
    return cri.SwapUsage(
        timestamp=sample.time, swap_available_bytes=_optional(found.available), swap_usage_bytes=_Number(value=found.usage)
    )


def io(sample: Sample) -> cri.IoUsage | None:
    if sample.io_pressure is None:
        return None
    return cri.IoUsage(timestamp=sample.time, psi=_pressure(sample.io_pressure))


def processes(sample: Sample) -> cri.ProcessUsage | None:
    if sample.tasks is None:
        return None
    return cri.ProcessUsage(timestamp=sample.time, process_count=_Number(value=sample.tasks))


def network(interfaces: list[Interface], timestamp: int) -> cri.NetworkUsage | None:
    """`default_interface` is eth0, or the first where a pod has none of that name; `interfaces` are the others."""
    if not interfaces:
        return None
    default = next((interface for interface in interfaces if interface.name == _DEFAULT_INTERFACE), interfaces[0])
    others = [_interface(interface) for interface in interfaces if interface is not default]
    return cri.NetworkUsage(timestamp=timestamp, default_interface=_interface(default), interfaces=others)


def _interface(interface: Interface) -> cri.NetworkInterfaceUsage:
    return cri.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=_Number(value=interface.rx_bytes),
        rx_errors=_Number(value=interface.rx_errors),
        tx_bytes=_Number(value=interface.tx_bytes),
        tx_errors=_Number(value=interface.tx_errors),
    )


def _pressure(pressure: Pressure | None) -> cri.PsiStats | None:
    if pressure is None:
        return None
    return cri.PsiStats(Some=_stall(pressure.some), Full=None if pressure.full is None else _stall(pressure.full))


def _stall(stall: Stall) -> cri.PsiData:
    return cri.PsiData(Total=stall.total, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300)


def _optional(value: int | None) -> cri.UInt64Value | None:
    return None if value is None else _Number(value=value)
