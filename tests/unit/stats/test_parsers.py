"""The file formats: what the kernel writes, and anything else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stats import Interface, Pressure, Stall, parse_interfaces, parsers

NET_DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  eth0: 123456789012   200    3    4    5     6          7         8      321     301   12   13   14    15      16         17
net1@if2:       1       2    3    0    0     0          0         0        4       5    6    0    0     0       0          0
"""
counts = st.integers(0, 2**64 - 1)
averages = st.integers(0, 10000).map(lambda hundredths: f"{hundredths // 100}.{hundredths % 100:02}")
keys = st.text(string.ascii_lowercase + "_", min_size=1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"17\n", 17), (b"0\n", 0), (b"max\n", None), (b"", None), (None, None), (b"-1\n", None), (b"1 2\n", None), (b"\xff", None)],
)
def test_number(data: bytes | None, expected: int | None) -> None:
    assert parsers.number(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"4096\n", 4096), (b"max\n", None), (b"9223372036854771712\n", None), (b"18446744073709551615\n", None), (None, None)],
)
def test_limit(data: bytes | None, expected: int | None) -> None:
    assert parsers.limit(data) == expected


@given(st.dictionaries(keys, counts))
def test_every_key_of_a_flat_file_has_its_value(table: dict[str, int]) -> None:
    found = parsers.flat("".join(f"{key} {value}\n" for key, value in table.items()).encode())
    assert {key: parsers.value(found, key.encode()) for key in table} == table
    assert parsers.value(found, b"no such key") == 0


@given(averages, averages, averages, st.integers(0, 2**60), st.booleans())
def test_pressure(avg10: str, avg60: str, avg300: str, total: int, with_full: bool) -> None:
    line = f"avg10={avg10} avg60={avg60} avg300={avg300} total={total}\n"
    stall = Stall(float(avg10), float(avg60), float(avg300), total * 1000)
    text = f"some {line}" + (f"full {line}" if with_full else "")
    assert parsers.pressure(text.encode()) == Pressure(stall, stall if with_full else None)


@pytest.mark.parametrize(
    "data", [None, b"", b"full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", b"some avg10=. avg60=1 avg300= total=x\n"]
)
def test_no_pressure(data: bytes | None) -> None:
    assert parsers.pressure(data) is None


@given(st.binary(max_size=200))
def test_no_content_of_a_file_is_an_error(data: bytes) -> None:
    parsers.number(data)
    parsers.limit(data)
    parsers.value(parsers.flat(data), b"a")
    parsers.pressure(data)
    parse_interfaces(data)


def test_interfaces() -> None:
    assert parse_interfaces(NET_DEV) == [
        Interface("eth0", 123456789012, 200, 3, 4, 321, 301, 12, 13),
        Interface("net1@if2", 1, 2, 3, 0, 4, 5, 6, 0),
    ]


names = st.text(string.ascii_letters + string.digits + "-_.@", min_size=1, max_size=15).filter(lambda name: name != "lo")


@given(st.dictionaries(names, st.lists(counts, min_size=16, max_size=16)))
def test_each_interface_has_its_own_columns(table: dict[str, list[int]]) -> None:
    headings = NET_DEV.splitlines(keepends=True)[:2]
    # The kernel puts no space between the colon and a number that fills its column.
    lines = [f"{name:>6}:{' '.join(map(str, numbers))}\n".encode() for name, numbers in table.items()]
    expected = [Interface(name, *n[0:4], *n[8:12]) for name, n in table.items()]
    assert parse_interfaces(b"".join(headings + lines)) == expected
