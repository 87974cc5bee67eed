from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errdefs import ResourceExhausted
from agent.snapshots import lookup
from agent.snapshots.lookup import merged_directories, open_directory, read_file
from tests.images import Entries, Node, directory, symlink, whiteout
from tests.unit.snapshots.test_apply import apply


def stack(root: Path, *layers: Entries) -> list[Path]:
    """Layers on disk, given base first, returned topmost first."""
    roots = []
    for number, entries in enumerate(layers):
        roots.append(root / str(number))
        apply(roots[-1], entries)
    return roots[::-1]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"/etc/passwd", b"new"),
        (b"etc/group", b"base"),
        (b"/etc/../etc//./passwd", b"new"),
        (b"/etc/shadow", None),  # whiteout
        (b"/link", b"new"),
        (b"/etc/absolute", b"base"),
        (b"/usr/conf/group", b"base"),  # through a directory link
        (b"/out", b"base"),  # "../../../etc/group" stays inside
        (b"/hidden/file", None),  # the directory became a file
        (b"/hidden", b"a file now"),
        (b"/removed/file", None),  # the directory has a whiteout
        (b"/loop", None),
        (b"/etc", None),
        (b"/", None),
        (b"/etc/passwd/x", None),
        (b"/pipe", None),
        (b"/nowhere", None),
    ],
)
def test_what_a_container_would_read(tmp_path: Path, path: bytes, content: bytes | None) -> None:
    layers = stack(
        tmp_path,
        {"etc/passwd": b"old", "etc/group": b"base", "etc/shadow": b"x", "hidden/file": b"", "removed/file": b""},
        [
            ("etc/passwd", b"new"),
            whiteout("etc/shadow"),
            ("link", symlink("etc/passwd")),
            ("etc/absolute", symlink("/etc/group")),
            ("usr/conf", symlink("../etc")),
            ("out", symlink("../../../etc/group")),
            ("hidden", b"a file now"),
            whiteout("removed"),
            ("loop", symlink("loop")),
            ("pipe", Node(b"6")),
        ],
        {"unrelated": b""},
    )
    assert read_file(layers, path, 100) == content


def test_a_long_file_is_refused(tmp_path: Path) -> None:
    layers = stack(tmp_path, {"etc/passwd": bytes(101)})
    assert read_file(layers, b"/etc/passwd", 101) == bytes(101)
    with pytest.raises(ResourceExhausted, match="longer than 100 bytes"):
        read_file(layers, b"/etc/passwd", 100)


def test_directories_are_found_by_their_own_name_only(tmp_path: Path) -> None:
    layers = stack(
        tmp_path,
        {"d/": directory(0o700), "gone/": directory(), "to/": directory(), "was/": directory()},
        [("d/x", b""), whiteout("gone"), ("link", symlink("to")), ("was", b"")],
    )
    opened = open_directory(layers[1:], b"d")
    assert opened is not None
    assert os.path.samestat(os.fstat(opened), (layers[1] / "d").stat())
    os.close(opened)
    assert [open_directory(layers, path) for path in (b"gone", b"link", b"was", b"d/x", b"nowhere")] == [None] * 5
    assert open_directory([], b"") is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", (b"", [0, 1, 2])),
        (b"./", (b"", [0, 1, 2])),
        (b"etc", (b"etc", [0, 2])),
        (b"link", (b"etc", [0, 2])),
        (b"/etc/conf.d/", (b"etc/conf.d", [2])),
        (b"etc/../etc/out", (b"etc/conf.d", [2])),  # "../../../../etc/conf.d" stays inside
        (b"home", (b"home", [1])),  # below it is a file
        (b"again", (b"again", [1])),  # was removed, and made again
        (b"opaque", (b"opaque", [1])),
        (b"opaque/below", (b"opaque/below", [1])),
        (b"etc/passwd", None),
        (b"etc/passwd/x", None),
        (b"gone", None),
        (b"nowhere", None),
        (b"loop", None),
        (b"to-file", None),
    ],
)
def test_which_layers_make_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes, expected: tuple[bytes, list[int]] | None
) -> None:
    layers = stack(
        tmp_path,
        [
            ("etc/conf.d/", directory()), ("etc/passwd", b""), ("home", b""), ("again/old", b""), ("gone/", directory()),
            ("opaque/below/", directory()), ("to-file", symlink("etc/passwd")), ("loop", symlink("loop")),
        ],
        [("home/", directory()), whiteout("gone"), ("opaque/below/", directory()), ("again/new", b"")],
        [("etc/hosts", b""), ("link", symlink("etc")), ("etc/out", symlink("../../../../etc/conf.d"))],
    )  # fmt: skip
    # The mark is an extended attribute that takes CAP_SYS_ADMIN to set.
    monkeypatch.setattr(lookup, "is_opaque", lambda opened: os.readlink(f"/proc/self/fd/{opened}").endswith(("1/opaque", "1/again")))
    assert merged_directories(layers, path) == expected
