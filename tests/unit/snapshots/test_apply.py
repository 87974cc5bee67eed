"""The rules of layers, as far as an ordinary user can apply them; what needs root is in tests/e2e/test_unpack.py."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument, OrlopError, ResourceExhausted
from agent.snapshots.apply import MAX_DEPTH, LayerApplier, Limits, Report
from agent.snapshots.tar import TarReader
from agent.snapshots.unpack_worker import unpack
from tests.images import Entries, Node, digest, directory, gzipped, hard_link, layer_tar, symlink, whiteout


def apply(root: Path, entries: Entries, limits: Limits | None = None) -> Report:
    root.mkdir(exist_ok=True)
    return LayerApplier(str(root), limits or Limits()).apply(TarReader(io.BytesIO(layer_tar(entries)).read))


def tree(root: Path) -> dict[str, object]:
    """What is below `root`: content of files, targets of symlinks, kinds of the rest."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        name = str(path.relative_to(root))
        if stat.S_ISLNK(mode):
            found[name] = str(path.readlink())
        elif stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        elif stat.S_ISCHR(mode):
            found[name] = path.lstat().st_rdev
        else:
            found[name] = stat.filemode(mode)[0]
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"of the host")
    return tmp_path / "root"


def test_a_layer_as_tools_write_it(root: Path) -> None:
    report = apply(
        root,
        {
            "./": directory(0o755, mtime=1000),
            "./etc/": directory(0o750, mtime=2000),
            "./etc/passwd": Node(data=b"root:x:0:0", mode=0o640, mtime=1234.5),
            "./bin/": directory(),
            "./bin/sh": Node(data=b"#!", mode=0o4755),
            "./bin/again": hard_link("./bin/sh"),
            "./lib": symlink("usr/lib", mtime=4000),
            "./pipe": Node(tarfile.FIFOTYPE, mode=0o622),
        },
    )
    assert tree(root) == {
        "bin": "d", "bin/again": b"#!", "bin/sh": b"#!", "etc": "d", "etc/passwd": b"root:x:0:0", "lib": "usr/lib", "pipe": "p",
    }  # fmt: skip
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "bin/sh").stat().st_mode) == 0o4755
    assert stat.S_IMODE((root / "pipe").stat().st_mode) == 0o622
    assert (root / "bin/sh").samefile(root / "bin/again")
    assert (root / "etc/passwd").stat().st_mtime == 1234.5
    assert root.stat().st_mtime == 1000
    assert (root / "etc").stat().st_mtime == 2000  # although a file was made in it afterwards
    assert (root / "lib").lstat().st_mtime == 4000
    assert (report.inodes, report.size, report.implied, report.opaque) == (6, 4 * 4096, {}, {})


def test_directories_without_an_entry_are_reported(root: Path) -> None:
    report = apply(root, {"usr/lib/x": b"", "usr/": directory(0o700)})
    assert list(report.implied) == [b"", b"usr/lib"]
    assert stat.S_IMODE((root / "usr/lib").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["/etc/x", "//etc/x", "./etc/./x", "etc//x"])
def test_names_are_relative_to_the_root(root: Path, name: str) -> None:
    apply(root, {name: b"x"})
    assert tree(root) == {"etc": "d", "etc/x": b"x"}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"../secret": b"x"}, "'..' in it"),
        ({"a/../../secret": b"x"}, "'..' in it"),
        ({"..": directory()}, "'..' in it"),
        ({"link": hard_link("../secret")}, "'..' in it"),
        ({"link": hard_link("/etc/hostname")}, "doesn't hold"),
        ({"link": hard_link("nothing")}, "doesn't hold"),
        ({"link": hard_link("/")}, "layer's root"),
        ({"dir/": directory(), "link": hard_link("dir")}, "can't have one"),
        ({"link": symlink("")}, "link to nothing"),
        ({"file": b"", "file/below": b""}, "not a directory"),
        ({"./": b"a file"}, "layer's root is a file"),
        ({"a/" * (MAX_DEPTH + 1): directory()}, "path components"),
        ({"n" * 256: b""}, "can't be made"),
        ({"x": Node(uid=2**32 - 1)}, "impossible owner"),
        ({"a": symlink("b"), "b": symlink("a"), "a/x": b""}, "symbolic links"),
        ({"a": symlink("d/" * 2000), "a/x": b""}, "too deep"),
        ({".wh.": b""}, "whiteout of nothing"),
        ({".wh...": b""}, "whiteout of nothing"),
        ({"d/.wh..": b""}, "whiteout of nothing"),
        ({".wh.x/y": b""}, "below a whiteout"),
    ],
)  # fmt: skip
def test_what_breaks_the_rules(root: Path, entries: Entries, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        apply(root, entries)
    assert (root.parent / "secret").read_bytes() == b"of the host"
    assert sorted(path.name for path in root.parent.iterdir()) == ["root", "secret"]


def test_symlinks_are_not_a_way_out(root: Path, tmp_path: Path) -> None:
    """The classic: a link out of the root, then a file through it. The target is taken from the layer's own root."""
    apply(
        root,
        [
            ("out", symlink("../../..")),
            ("out/escaped", b"1"),
            ("abs", symlink(str(tmp_path))),
            ("abs/escaped", b"2"),
            ("via", symlink("out")),
            ("via/deep/escaped", b"3"),
            ("hard", hard_link("out/escaped")),
        ],
    )
    inside = str(tmp_path).lstrip("/")
    assert (root / "escaped").read_bytes() == b"1"
    assert (root / inside / "escaped").read_bytes() == b"2"
    assert (root / "deep/escaped").read_bytes() == b"3"
    assert (root / "hard").samefile(root / "escaped")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "secret"]


def test_directory_links_of_the_layer_are_followed_inside_it(root: Path) -> None:
    apply(
        root, [("usr/lib/", directory()), ("lib", symlink("usr/lib")), ("lib/x", b"x"), ("usr/lib/up", symlink("..")), ("lib/up/y", b"y")]
    )
    assert (root / "usr/lib/x").read_bytes() == b"x"
    assert (root / "usr/y").read_bytes() == b"y"


def test_a_final_symlink_is_replaced_not_followed(root: Path) -> None:
    apply(root, [("victim", b"old"), ("link", symlink("victim")), ("link", b"new")])
    assert tree(root) == {"link": b"new", "victim": b"old"}


def test_later_entries_replace_earlier_ones(root: Path) -> None:
    report = apply(
        root,
        [
            ("a", b"file"), ("a", symlink("x")), ("a/", directory()), ("a/b/c", b""), ("a", b"file again"),
            ("d/", directory(0o700)), ("d/keep", b""), ("d/", directory(0o711)),
            ("f", b"1"), ("g", hard_link("f")), ("g", hard_link("f")), ("h", b"2"), ("h", hard_link("f")),
        ],
    )  # fmt: skip
    assert tree(root) == {"a": b"file again", "d": "d", "d/keep": b"", "f": b"1", "g": b"1", "h": b"1"}
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o711
    assert list(report.implied) == [b""]  # a/b is gone


def test_a_replaced_link_is_not_remembered(root: Path) -> None:
    apply(root, [("one/", directory()), ("two/", directory()), ("l", symlink("one")), ("l/x", b"1"), ("l", symlink("two")), ("l/y", b"2")])
    assert tree(root) == {"l": "two", "one": "d", "one/x": b"1", "two": "d", "two/y": b"2"}


def test_whiteouts(root: Path) -> None:
    report = apply(
        root,
        [
            whiteout("gone"), whiteout("dir/gone"),
            ("kept", b"x"), whiteout("kept"),
            whiteout("back"), ("back", b"y"),
            whiteout("redone"), ("redone/", directory()), ("redone/x", b""),
            whiteout("implied"), ("implied/x", b""),
            ("filled/x", b""), whiteout("filled"),
            ("opaque/x", b""), ("opaque/.wh..wh..opq", b""),
            (".wh..wh.plnk/1.2", b"aufs"), (".wh..wh.aufs", b""),
        ],
    )  # fmt: skip
    found = tree(root)
    assert [name for name, kind in found.items() if kind == 0] == ["dir/gone", "gone"]
    assert found["kept"] == b"x"
    assert found["back"] == b"y"
    assert not any("wh." in name for name in found)
    assert sorted(report.opaque) == [b"filled", b"implied", b"opaque", b"redone"]
    assert sorted(report.implied) == [b"", b"dir", b"opaque"]


def test_an_opaque_root(root: Path) -> None:
    assert b"" in apply(root, {".wh..wh..opq": b"", "x": b""}).opaque


@pytest.mark.parametrize(
    ("limits", "entries", "sentence"),
    [
        (Limits(entries=2), {"a": b"", "b": b"", "c": b""}, "more than 2 entries"),
        (Limits(devices=1), {"a": Node(tarfile.CHRTYPE), "b": Node(tarfile.CHRTYPE)}, "more than 1 device"),
    ],
)
def test_bombs(root: Path, limits: Limits, entries: Entries, sentence: str) -> None:
    with pytest.raises(ResourceExhausted, match=sentence):
        apply(root, entries, limits)


@pytest.mark.parametrize("compress", [gzipped, zstandard.compress])
def test_a_layer_that_was_packed_too_well(root: Path, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    tar = layer_tar({"zeros": bytes(1 << 20)})
    root.mkdir()
    blob = tmp_path / "blob"
    blob.write_bytes(compress(tar))

    def unpacked(limits: Limits) -> object:
        with io.BufferedReader(io.FileIO(blob)) as layer:
            return unpack(layer, str(root), digest(tar), limits)

    limit = 100 * blob.stat().st_size
    with pytest.raises(ResourceExhausted, match=f"more than {limit} bytes when unpacked"):
        unpacked(Limits(ratio=100, unsuspicious=1000))
    assert sum(path.stat().st_size for path in root.iterdir()) <= limit
    (root / "zeros").unlink(missing_ok=True)
    with pytest.raises(ResourceExhausted, match="more than 1000 bytes"):
        unpacked(Limits(bytes=1000))
    assert unpacked(Limits(ratio=100))
    (root / "zeros").unlink(missing_ok=True)
    assert unpacked(Limits(ratio=100_000, unsuspicious=1000))


def test_xattrs_that_are_not_a_layers_to_set_are_left_out(root: Path) -> None:
    report = apply(root, {"x": Node(xattrs={"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y", "security.selinux": b"any"})})
    assert report.ignored_xattrs == 3
    assert not any("overlay" in name for name in os.listxattr(root / "x"))


def test_many_directories_do_not_keep_many_files_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    apply(root, [(f"d{number}/x", b"") for number in range(1000)])
    assert len(os.listdir("/proc/self/fd")) == before


NAMES = st.text(alphabet="ab/.", min_size=1, max_size=8)
NODES = st.one_of(
    st.binary(max_size=5),
    st.just(directory()),
    st.builds(symlink, NAMES),
    st.builds(hard_link, NAMES),
    st.just(Node(tarfile.FIFOTYPE)),
)
ENTRIES = st.lists(st.tuples(st.one_of(NAMES, NAMES.map(lambda name: f".wh.{name}"), st.just("a/.wh..wh..opq")), NODES), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENTRIES)
def test_whatever_a_layer_says_nothing_outside_changes(tmp_path_factory: pytest.TempPathFactory, entries: Entries) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a").write_bytes(b"host")
    with suppress(OrlopError):
        apply(outside / "root", entries)
    assert sorted(path.name for path in outside.iterdir()) == ["a", "root"]
    assert (outside / "a").read_bytes() == b"host"
    assert (outside / "a").stat().st_nlink == 1
