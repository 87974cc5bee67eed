"""The metrics of pods and containers that the kubelet passes on from the CRI to Prometheus (KEP-2371): names, labels and help.

Names, types and labels are cAdvisor's, so that dashboards and alerts go on to work; the list is what a kubelet with cAdvisor
shows, without what only machines with perf counters or resctrl have. Static: the kubelet asks once, at its start.

The CRI has whole numbers only, so what is counted in seconds here is in whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASE = ("namespace", "pod", "container", "id", "image")
"""Labels that every metric has. Container and image are empty for what is the whole pod's."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One metric. `labels` come behind those of `BASE`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


CPU_USAGE = Descriptor("container_cpu_usage_seconds_total", "counter", "CPU time used, in seconds.", ("cpu",))
CPU_USER = Descriptor("container_cpu_user_seconds_total", "counter", "CPU time used in user mode, in seconds.")
CPU_SYSTEM = Descriptor("container_cpu_system_seconds_total", "counter", "CPU time used in the kernel, in seconds.")
CFS_PERIODS = Descriptor("container_cpu_cfs_periods_total", "counter", "Periods in which the CPU quota was enforced.")
CFS_THROTTLED_PERIODS = Descriptor("container_cpu_cfs_throttled_periods_total", "counter", "Periods in which the CPU quota was used up.")
CFS_THROTTLED = Descriptor("container_cpu_cfs_throttled_seconds_total", "counter", "Time for which CPUs were held back by the quota.")

MEMORY_USAGE = Descriptor("container_memory_usage_bytes", "gauge", "Memory in use, page cache included.")
MEMORY_MAX_USAGE = Descriptor("container_memory_max_usage_bytes", "gauge", "The most memory that was ever in use.")
MEMORY_WORKING_SET = Descriptor("container_memory_working_set_bytes", "gauge", "Memory in use without inactive page cache.")
MEMORY_RSS = Descriptor("container_memory_rss", "gauge", "Anonymous memory, in bytes.")
MEMORY_CACHE = Descriptor("container_memory_cache", "gauge", "Page cache, in bytes.")
MEMORY_MAPPED_FILE = Descriptor("container_memory_mapped_file", "gauge", "Page cache that is mapped into processes, in bytes.")
MEMORY_ACTIVE_FILE = Descriptor("container_memory_total_active_file_bytes", "gauge", "Page cache used lately.")
MEMORY_INACTIVE_FILE = Descriptor("container_memory_total_inactive_file_bytes", "gauge", "Page cache not used lately.")
MEMORY_KERNEL = Descriptor("container_memory_kernel_usage", "gauge", "Memory that the kernel uses for the container, in bytes.")
MEMORY_SWAP = Descriptor("container_memory_swap", "gauge", "Swap in use, in bytes.")
MEMORY_FAILCNT = Descriptor("container_memory_failcnt", "counter", "How often the memory limit was hit.")
MEMORY_FAILURES = Descriptor(
    "container_memory_failures_total",
    "counter",
    "Page faults; pgmajfault are those that waited for a disk.",
    ("failure_type", "scope"),
)
OOM_EVENTS = Descriptor("container_oom_events_total", "counter", "Processes that the OOM killer has killed.")

HUGETLB_USAGE = Descriptor("container_hugetlb_usage_bytes", "gauge", "Huge pages in use.", ("pagesize",))
HUGETLB_MAX_USAGE = Descriptor("container_hugetlb_max_usage_bytes", "gauge", "The most huge pages that were ever in use.", ("pagesize",))

FS_USAGE = Descriptor("container_fs_usage_bytes", "gauge", "What the container's writable layer takes on the disk.", ("device",))
FS_LIMIT = Descriptor("container_fs_limit_bytes", "gauge", "Size of the file system with the writable layer.", ("device",))
FS_INODES = Descriptor("container_fs_inodes_total", "gauge", "Inodes of the file system with the writable layer.", ("device",))
FS_INODES_FREE = Descriptor("container_fs_inodes_free", "gauge", "Free inodes of the file system with the writable layer.", ("device",))
FS_READS = Descriptor("container_fs_reads_total", "counter", "Reads from a device.", ("device",))
FS_READ_BYTES = Descriptor("container_fs_reads_bytes_total", "counter", "Bytes read from a device.", ("device",))
FS_WRITES = Descriptor("container_fs_writes_total", "counter", "Writes to a device.", ("device",))
FS_WRITTEN_BYTES = Descriptor("container_fs_writes_bytes_total", "counter", "Bytes written to a device.", ("device",))
BLKIO_USAGE = Descriptor(
    "container_blkio_device_usage_total",
    "counter",
    "Bytes read from, written to and discarded on a device.",
    ("device", "major", "minor", "operation"),
)

RECEIVED_BYTES = Descriptor("container_network_receive_bytes_total", "counter", "Bytes received.", ("interface",))
RECEIVED_PACKETS = Descriptor("container_network_receive_packets_total", "counter", "Packets received.", ("interface",))
RECEIVED_DROPPED = Descriptor("container_network_receive_packets_dropped_total", "counter", "Packets dropped on receipt.", ("interface",))
RECEIVED_ERRORS = Descriptor("container_network_receive_errors_total", "counter", "Packets received with an error.", ("interface",))
SENT_BYTES = Descriptor("container_network_transmit_bytes_total", "counter", "Bytes sent.", ("interface",))
SENT_PACKETS = Descriptor("container_network_transmit_packets_total", "counter", "Packets sent.", ("interface",))
SENT_DROPPED = Descriptor("container_network_transmit_packets_dropped_total", "counter", "Packets dropped when sent.", ("interface",))
SENT_ERRORS = Descriptor("container_network_transmit_errors_total", "counter", "Packets that could not be sent.", ("interface",))

PROCESSES = Descriptor("container_processes", "gauge", "Processes.")
THREADS = Descriptor("container_threads", "gauge", "Threads.")
THREADS_MAX = Descriptor("container_threads_max", "gauge", "Threads that there may be; 0 if there is no limit.")
FILE_DESCRIPTORS = Descriptor("container_file_descriptors", "gauge", "Open file descriptors, each process's counted.")
SOCKETS = Descriptor("container_sockets", "gauge", "Open file descriptors that are sockets.")
ULIMITS_SOFT = Descriptor("container_ulimits_soft", "gauge", "Soft limits of the container's first process.", ("ulimit",))

PRESSURE_CPU_STALLED = Descriptor(
    "container_pressure_cpu_stalled_seconds_total", "counter", "Time for which no task could go on for want of a CPU."
)
PRESSURE_CPU_WAITING = Descriptor("container_pressure_cpu_waiting_seconds_total", "counter", "Time for which some task waited for a CPU.")
PRESSURE_MEMORY_STALLED = Descriptor(
    "container_pressure_memory_stalled_seconds_total", "counter", "Time for which no task could go on for want of memory."
)
PRESSURE_MEMORY_WAITING = Descriptor(
    "container_pressure_memory_waiting_seconds_total", "counter", "Time for which some task waited for memory."
)
PRESSURE_IO_STALLED = Descriptor("container_pressure_io_stalled_seconds_total", "counter", "Time for which no task could go on for I/O.")
PRESSURE_IO_WAITING = Descriptor("container_pressure_io_waiting_seconds_total", "counter", "Time for which some task waited for I/O.")

LAST_SEEN = Descriptor("container_last_seen", "gauge", "When the container was last seen to run, in Unix seconds.")
START_TIME = Descriptor("container_start_time_seconds", "gauge", "When the container was started, in Unix seconds.")
SPEC_CPU_PERIOD = Descriptor("container_spec_cpu_period", "gauge", "The container's CPU period, in microseconds.")
SPEC_CPU_QUOTA = Descriptor("container_spec_cpu_quota", "gauge", "The container's CPU quota, in microseconds for each period.")
SPEC_CPU_SHARES = Descriptor("container_spec_cpu_shares", "gauge", "The container's CPU shares.")
SPEC_MEMORY_LIMIT = Descriptor("container_spec_memory_limit_bytes", "gauge", "The container's memory limit; 0 if there is none.")
SPEC_MEMORY_SWAP_LIMIT = Descriptor(
    "container_spec_memory_swap_limit_bytes", "gauge", "The container's limit of memory and swap together; 0 if there is none."
)
SPEC_MEMORY_RESERVATION = Descriptor(
    "container_spec_memory_reservation_limit_bytes", "gauge", "Memory that is kept for the container; 0 if there is none."
)

TABLE = tuple(entry for entry in tuple(globals().values()) if isinstance(entry, Descriptor))
"""All of the above, in their order."""
