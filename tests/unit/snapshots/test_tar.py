from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import DataLoss, InvalidArgument
from agent.snapshots.tar import BLOCK, MAX_EXTENSION, Entry, EntryType, TarReader
from tests.images import Entries, Node, directory, hard_link, layer_tar, symlink

Read = list[tuple[Entry, bytes]]


def read_all(archive: bytes, chunk: int = 1 << 20) -> Read:
    source = io.BytesIO(archive)
    reader = TarReader(lambda count: source.read(min(count, chunk)))
    return [(entry, b"".join(reader.data())) for entry in reader]


def header(**fields: object) -> bytes:
    """A header block with some fields replaced by raw bytes, and a right checksum."""
    block = bytearray(tarfile.TarInfo("name").tobuf(tarfile.USTAR_FORMAT))
    places = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "type": 156, "magic": 257, "prefix": 345}
    for name, value in fields.items():
        assert isinstance(value, bytes)
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def record(key: str, value: str) -> bytes:
    """A PAX record; its length counts itself."""
    rest = f" {key}={value}\n"
    length = len(rest)
    while length != len(f"{length}{rest}"):
        length += 1
    return f"{length}{rest}".encode()


def pax(records: bytes) -> bytes:
    """A PAX header for the entry that follows."""
    return header(type=b"x", size=b"%011o" % len(records)) + records + bytes(-len(records) % BLOCK)


MEMBERS: Entries = {
    "dir/": directory(0o1777, uid=3, gid=4),
    "dir/file": Node(data=b"content", mode=0o4755, uid=1000, gid=2**31, mtime=1_600_000_000.25, xattrs={"user.x": b"\xff\0\n="}),
    "dir/empty": b"",
    "dir/block": bytes(BLOCK),
    "link": symlink("../over/there"),
    "hard": hard_link("dir/file"),
    "null": Node(tarfile.CHRTYPE, device=(1, 3)),
    "disk": Node(tarfile.BLKTYPE, device=(259, 70000)),
    "fifo": Node(tarfile.FIFOTYPE),
    "long/" * 40 + "name": b"x",
    "\udcff\udcfe not UTF-8": b"y",
    "n" * 150: symlink("t" * 200),
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_reads_what_tarfile_writes(form: int) -> None:
    archive = layer_tar(MEMBERS, form=form)
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as tar:
        expected = tar.getmembers()
    found = read_all(archive)
    assert len(found) == len(expected) == len(MEMBERS)
    for (entry, data), info in zip(found, expected, strict=True):
        assert entry.name.rstrip(b"/") == info.name.encode(errors="surrogateescape")
        assert entry.target == info.linkname.encode(errors="surrogateescape")
        assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
        assert abs(entry.mtime_ns - info.mtime * 1e9) < 1000  # a float has no more digits
        assert entry.offset == info.offset_data
        if info.isdev() and not info.isfifo():
            assert entry.device == (info.devmajor, info.devminor)
        assert len(data) == entry.size == (info.size if info.isreg() else 0)
    assert dict(found[1][0].xattrs) == ({b"user.x": b"\xff\0\n="} if form == tarfile.PAX_FORMAT else {})
    assert found[1][1] == b"content"


@given(st.integers(1, 2000), st.lists(st.binary(max_size=1500), max_size=5))
def test_chunks_make_no_difference(chunk: int, contents: list[bytes]) -> None:
    archive = layer_tar([(f"file{number}", content) for number, content in enumerate(contents)])
    assert [data for _, data in read_all(archive, chunk)] == contents


def test_unread_data_is_skipped_by_seeking() -> None:
    archive = io.BytesIO(layer_tar({"big": bytes(1 << 20), "next": b"here"}))
    asked: list[int] = []

    def skip(count: int) -> None:
        asked.append(count)
        archive.seek(count, io.SEEK_CUR)

    reader = TarReader(lambda count: archive.read(min(count, 4096)), skip)
    names = []
    for entry in reader:
        names.append(entry.name)
        assert archive.getvalue()[entry.offset :][: min(entry.size, 4)] in (bytes(4), b"here")
    assert names == [b"big", b"next"]
    assert sum(asked) > (1 << 20) - 8192


@given(st.data())
def test_damage_never_gets_through_as_another_error(data: st.DataObject) -> None:
    archive = bytearray(layer_tar(MEMBERS, form=data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(archive)))
    with suppress(DataLoss, InvalidArgument):
        read_all(bytes(archive[:cut]))


def patched(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda archive: archive[:offset] + value + archive[offset + len(value) :]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (patched(0, b"N"), "checksum"),
        (patched(BLOCK + 512, b"x"), "checksum"),
        (lambda archive: archive[:100], "middle of a header"),
        (lambda archive: archive[:600], "middle of a file"),
        (lambda archive: archive[: BLOCK * 2] + bytes(BLOCK) + archive[: BLOCK * 2], "lone zero block"),
        (lambda archive: b"\x1f\x8b" + bytes(BLOCK), "not tar"),
    ],
)
def test_damage_is_told(damage: Callable[[bytes], bytes], sentence: str) -> None:
    archive = layer_tar({"a": bytes(512), "b": b"b"}, form=tarfile.USTAR_FORMAT)
    with pytest.raises(DataLoss, match=sentence):
        read_all(damage(archive))


@pytest.mark.parametrize("trailer", [b"", bytes(BLOCK), bytes(20 * BLOCK)])
def test_the_end_may_be_padded_or_missing(trailer: bytes) -> None:
    assert [entry.name for entry, _ in read_all(header() + trailer)] == [b"name"]


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (header(type=b"S"), "sparse"),
        (header(type=b"V"), "unknown tar type"),
        (header(size=b"7777777777_"), "not a number"),
        (header(mode=b"0000-07"), "not a number"),
        (header(mode=b"0000089"), "not a number"),
        (header(size=b"\xff" * 12), "size"),
        (header(type=b"x", size=b"%011o" % (MAX_EXTENSION + 1)), "header extension"),
        (header(type=b"L", size=b"%011o" % 5) + b"long\0" + bytes(507), "middle of an entry"),
    ],
)
def test_headers_that_are_refused(block: bytes, error: str) -> None:
    with pytest.raises((DataLoss, InvalidArgument), match=error):
        read_all(block)


@pytest.mark.parametrize(
    ("records", "error"),
    [
        (b"13 path=xyzzy", "malformed"),
        (b"999 path=x\n", "malformed"),
        (b"7 pathx\n", "malformed"),
        (b"0 \n", "malformed"),
        (b"x path=y\n", "malformed"),
        (b"6 =xx\n", "malformed"),
        (record("size", "-1"), "not a number"),
        (record("uid", "1" * 5000), "not a number"),
        (record("mtime", "now"), "not a time"),
        (record("GNU.sparse.realsize", "1"), "sparse"),
        (record("path", "a\0b"), "can't be"),
    ],
)
def test_pax_records_that_are_refused(records: bytes, error: str) -> None:
    with pytest.raises((DataLoss, InvalidArgument), match=error):
        read_all(pax(records) + header())


def test_fields_of_other_times_and_tools() -> None:
    assert read_all(header(uid=b"\x80\0\0\0\1\0\0\0"))[0][0].uid == 1 << 24  # base 256
    assert read_all(header(mtime=b"\xff" * 12))[0][0].mtime_ns == -1_000_000_000
    assert read_all(header(type=b"\0", name=b"old/"))[0][0].type is EntryType.DIRECTORY
    assert read_all(header(type=b"7"))[0][0].type is EntryType.FILE
    assert read_all(header(prefix=b"over"))[0][0].name == b"over/name"
    assert read_all(header(prefix=b"over", magic=b"ustar  \0"))[0][0].name == b"name"
    assert read_all(header(mode=b"       "))[0][0].mode == 0
    assert read_all(pax(record("mtime", "-1.5")) + header())[0][0].mtime_ns == -1_500_000_000
    assert read_all(pax(record("path", "")) + header())[0][0].name == b"name"
    assert read_all(header(type=b"g", size=b"%011o" % 9) + b"9 path=x\n" + bytes(503) + header())[0][0].name == b"name"
    assert read_all(header(type=b"2", size=b"%011o" % 512))[0][0].size == 0  # a link has no data, whatever it says
