"""What a shim answers to Stats."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from agent.api.cgroup1.stats import metrics_pb2 as v1
from agent.api.cgroup2.stats import metrics_pb2 as v2
from agent.errdefs import Internal
from agent.stats import Memory, Pressure, Sample, Stall, Swap, shim

MIB = 1 << 20
NO_LIMIT = 2**64 - 1


def packed(message: Message, prefix: str = "") -> Any:
    return Any(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.mark.parametrize("prefix", ["", "types.containerd.io/"])
def test_v1(prefix: str) -> None:
    memory = v1.MemoryStat(
        rss=1,
        total_rss=30 * MIB,
        total_inactive_file=20 * MIB,
        total_pg_fault=700,
        total_pg_maj_fault=3,
        usage=v1.MemoryEntry(usage=100 * MIB, limit=200 * MIB),
        swap=v1.MemoryEntry(usage=101 * MIB, limit=204 * MIB),
    )
    metrics = v1.Metrics(pids=v1.PidsStat(current=7), cpu=v1.CPUStat(usage=v1.CPUUsage(total=1_500_000_123)), memory=memory)
    sample = shim.sample(packed(metrics, prefix))
    assert sample.cpu == 1_500_000_123
    assert sample.memory == Memory(100 * MIB, 80 * MIB, 30 * MIB, 700, 3, 120 * MIB)
    assert sample.swap == Swap(1 * MIB, 3 * MIB)
    assert sample.tasks == 7


def test_v2() -> None:
    psi = v2.PSIStats(some=v2.PSIData(avg10=1.5, total=12), full=v2.PSIData(avg60=2))
    memory = v2.MemoryStat(
        anon=30 * MIB,
        inactive_file=20 * MIB,
        pgfault=700,
        pgmajfault=3,
        usage=100 * MIB,
        usage_limit=200 * MIB,
        swap_usage=4096,
        swap_limit=8192,
        psi=psi,
    )
    metrics = v2.Metrics(pids=v2.PidsStat(current=7), cpu=v2.CPUStat(usage_usec=1500, psi=psi), memory=memory, io=v2.IOStat(psi=psi))
    sample = shim.sample(packed(metrics))
    pressure = Pressure(Stall(1.5, 0, 0, 12_000), Stall(0, 2, 0, 0))
    assert sample.cpu == 1_500_000
    assert sample.memory == Memory(100 * MIB, 80 * MIB, 30 * MIB, 700, 3, 120 * MIB)
    assert sample.swap == Swap(4096, 4096)
    assert (sample.cpu_pressure, sample.memory_pressure, sample.io_pressure) == (pressure,) * 3


@pytest.mark.parametrize("limit", [0, NO_LIMIT])
def test_no_limit(limit: int) -> None:
    sample = shim.sample(packed(v2.Metrics(memory=v2.MemoryStat(usage=1, usage_limit=limit, swap_limit=limit))))
    assert sample.memory is not None
    assert sample.memory.available is None
    assert sample.swap == Swap(0, None)


@pytest.mark.parametrize("metrics", [v1.Metrics(), v2.Metrics()])
def test_what_isnt_told_isnt_zero(metrics: Message) -> None:
    sample = shim.sample(packed(metrics))
    assert sample == Sample(sample.time, sample.clock)


@pytest.mark.parametrize("answer", [Any(), Any(type_url="windows.Stats"), Any(type_url=v1.Metrics.DESCRIPTOR.full_name, value=b"\xff")])
def test_an_answer_in_an_unknown_form(answer: Any) -> None:
    with pytest.raises(Internal, match="a shim answered Stats"):
        shim.sample(answer)
