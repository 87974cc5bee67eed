"""The mount table: whatever the kernel can write is read back, and what it can't write is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.linux.mountinfo import MountInfo, is_below, parse_below, parse_mountinfo

names = st.text(st.characters(exclude_characters="\0/.", exclude_categories=["Cs"]), min_size=1, max_size=8)
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
words = st.text("abc=:,0/", min_size=1, max_size=10)
mounts = st.builds(
    MountInfo,
    mount_id=st.integers(0, 2**31),
    parent_id=st.integers(0, 2**31),
    device=st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 2**20)),
    root=paths,
    mount_point=paths.map(Path),
    options=words,
    optional=st.lists(st.sampled_from(["shared:1", "master:7", "propagate_from:3", "unbindable"]), unique=True).map(" ".join),
    fstype=st.sampled_from(["ext4", "overlay", "fuse.sshfs"]),
    source=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    super_options=words,
)


def escaped(text: str) -> str:
    """As the kernel's mangle() and seq_path()."""
    return "".join(f"\\{ord(character):03o}" if character in " \t\n\\#" else character for character in text)


def rendered(mount: MountInfo) -> str:
    optional = f" {mount.optional}" if mount.optional else ""
    return (
        f"{mount.mount_id} {mount.parent_id} {mount.device} {escaped(mount.root)} {escaped(str(mount.mount_point))} {mount.options}"
        f"{optional} - {mount.fstype} {escaped(mount.source)} {mount.super_options}\n"
    )


@given(st.lists(mounts, max_size=5))
def test_a_table_is_read_back_as_it_was_written(table: list[MountInfo]) -> None:
    assert parse_mountinfo("".join(map(rendered, table)).encode()) == table


@given(st.lists(mounts, max_size=5, unique_by=lambda mount: mount.mount_id), paths.map(Path))
def test_sorting_out_by_mount_point_loses_nothing(table: list[MountInfo], top: Path) -> None:
    expected = [mount for mount in table if mount.mount_point == top or top in mount.mount_point.parents]
    found = parse_below("".join(map(rendered, table)).encode(), top)
    assert sorted(found, key=lambda mount: mount.mount_id) == sorted(expected, key=lambda mount: mount.mount_id)


@given(st.binary(max_size=200))
def test_garbage_is_left_out(data: bytes) -> None:
    good = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    assert parse_mountinfo(data.replace(b"\n", b" ").replace(b" - ", b"   ") + b"\n" + good)[-1].mount_point == Path("/mnt2")


def test_a_name_that_is_not_utf8_survives() -> None:
    (mount,) = parse_mountinfo(b"1 0 0:1 / /run/\xff\\012x rw - tmpfs none rw\n")
    assert bytes(mount.mount_point) == b"/run/\xff\nx"


def test_a_mount_that_was_moved_comes_after_the_one_it_is_on() -> None:
    moved_first = b"40 41 0:1 / /a/b/c rw - tmpfs x rw\n41 1 0:2 / /a rw - tmpfs y rw\n42 40 0:3 / /a/b/c rw - tmpfs z rw\n"
    assert [mount.mount_id for mount in parse_below(moved_first, Path("/a"))] == [41, 40, 42]


@pytest.mark.parametrize(
    ("path", "top", "expected"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/", "/a", False), ("/a", "/", True), ("/", "/", True)],
)
def test_is_below(path: str, top: str, expected: bool) -> None:
    assert is_below(path, Path(top)) is expected
