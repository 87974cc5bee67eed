"""Rows of /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.linux.cgroupfs import parse_membership
from agent.linux.procfs import parse_stat, printable, scan, split_arguments

TAIL = b"S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 8118272 512 18446744073709551615 1 1 0"


@given(st.binary(max_size=16).filter(lambda comm: b"\0" not in comm))
def test_a_name_can_be_anything(comm: bytes) -> None:
    stat = parse_stat(b"12 (" + comm + b") " + TAIL)
    assert (stat.comm.encode(errors="surrogateescape"), stat.state, stat.ppid, stat.start_time) == (comm, "S", 7, 98765)


@pytest.mark.parametrize("data", [b"", b"12 (x", b"12 (x) S 7", b")"])
def test_what_is_no_stat_line_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_stat(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", ()), (b"sh\0-c\0\0", ("sh", "-c", "")), (b"runc\0init\0", ("runc", "init")), (b"nginx: worker", ("nginx: worker",))],
)
def test_arguments(data: bytes, expected: tuple[str, ...]) -> None:
    assert split_arguments(data) == expected


@given(st.binary(max_size=20))
def test_a_name_is_one_line_of_a_log(name: bytes) -> None:
    assert printable(os.fsdecode(name)).isprintable()
    assert printable("nginx: wörker") == "nginx: wörker"


@given(st.dictionaries(st.sampled_from(["memory", "cpu,cpuacct", "name=systemd", ""]), st.text("ab:/ é", max_size=6).map("/{}".format)))
def test_membership(expected: dict[str, str]) -> None:
    lines = "".join(f"{number}:{controllers}:{path}\n" for number, (controllers, path) in enumerate(expected.items()))
    assert parse_membership(lines.encode()) == expected


def test_the_table_leaves_out_what_vanishes(tmp_path: Path) -> None:
    for pid in (3, 20):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_bytes(b"%d (x) " % pid + TAIL)
        (tmp_path / str(pid) / "cmdline").write_bytes(b"x\0y\0")
    (tmp_path / "20/cgroup").write_text("0::/pods\n")
    (tmp_path / "100").mkdir()
    (tmp_path / "meminfo").touch()
    (row,) = scan(tmp_path)
    assert (row.pid, row.ppid, row.comm, row.cmdline, row.state, row.start_time, row.cgroups) == (
        20, 7, "x", ("x", "y"), "S", 98765, {"": "/pods"},
    )  # fmt: skip
