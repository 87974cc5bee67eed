from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import failpoints
from agent.content import ContentStore, digest_of, validate_digest
from agent.errdefs import DataLoss, Internal, InvalidArgument, NotFound

DATA = b"some bytes" * 1000
DIGEST = digest_of(DATA)


async def chunks(data: bytes, size: int = 999) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def opened(root: Path) -> ContentStore:
    store = ContentStore(root)
    await store.open()
    return store


@pytest.fixture(autouse=True)
def no_failpoints() -> AsyncIterator[None]:  # type: ignore[misc]  # a generator fixture, not an async one
    yield
    failpoints.configure("")


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_blob_is_stored_under_its_digest(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert await store.ingest(chunks(DATA), "a", DIGEST, len(DATA)) == DIGEST
    assert files(tmp_path) == [f"blobs/sha256/{DIGEST[7:]}"]
    assert await store.read(DIGEST) == DATA
    assert store.exists(DIGEST)
    assert store.size(DIGEST) == len(DATA)


async def test_a_blob_without_a_known_digest_gets_its_own(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert await store.ingest(chunks(DATA), "a") == DIGEST
    assert store.list() == {DIGEST: len(DATA)}


async def test_blobs_are_known_after_a_restart(tmp_path: Path) -> None:
    await (await opened(tmp_path)).ingest(chunks(DATA), "a", DIGEST)
    (tmp_path / "blobs/sha256/README").touch()
    assert (await opened(tmp_path)).list() == {DIGEST: len(DATA)}


@pytest.mark.parametrize(
    ("digest", "size", "what"),
    [
        (digest_of(b"other"), None, "has the digest"),
        (DIGEST, len(DATA) + 1, "ended after"),
        (DIGEST, len(DATA) - 1, "is longer than"),
        ("", 5, "is longer than"),
    ],
)
async def test_wrong_bytes_leave_nothing(tmp_path: Path, digest: str, size: int | None, what: str) -> None:
    store = await opened(tmp_path)
    with pytest.raises(DataLoss, match=what):
        await store.ingest(chunks(DATA), "a", digest, size)
    assert files(tmp_path) == []
    assert store.list() == {}


async def test_an_endless_source_is_left_at_its_stated_size(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100)

    with pytest.raises(DataLoss, match="longer than the 1000 bytes"):
        await (await opened(tmp_path)).ingest(endless(), "a", DIGEST, 1000)


async def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ConnectionResetError("gone")

    store = await opened(tmp_path)
    with pytest.raises(ConnectionResetError):
        await store.ingest(broken(), "a", DIGEST)
    assert files(tmp_path) == []


async def test_a_cancelled_ingest_leaves_nothing(tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"first"
        reached.set()
        await asyncio.Event().wait()

    store = await opened(tmp_path)
    task = asyncio.create_task(store.ingest(stuck(), "a", DIGEST))
    await reached.wait()
    assert files(tmp_path) == ["ingest/a"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(tmp_path) == []
    assert await store.ingest(chunks(DATA), "a", DIGEST) == DIGEST  # neither the key nor the digest is held


async def test_a_second_ingest_of_a_digest_waits_and_does_not_read(tmp_path: Path) -> None:
    read: list[str] = []

    async def source(name: str) -> AsyncIterator[bytes]:
        read.append(name)
        yield DATA

    store = await opened(tmp_path)
    results = await asyncio.gather(store.ingest(source("a"), "a", DIGEST), store.ingest(source("b"), "b", DIGEST))
    assert list(results) == [DIGEST, DIGEST]
    assert read == ["a"]


async def test_open_sweeps_half_written_blobs(tmp_path: Path) -> None:
    await opened(tmp_path)
    (tmp_path / "ingest/left").write_bytes(b"half")
    assert await ContentStore(tmp_path).open() == ["left"]
    assert files(tmp_path) == []


@pytest.mark.parametrize("point", ["content.ingest.create", "content.ingest.rename"])
async def test_failure_at_each_step_leaves_nothing(tmp_path: Path, point: str) -> None:
    store = await opened(tmp_path)
    failpoints.configure(f"{point}=error")
    with pytest.raises(Internal):
        await store.ingest(chunks(DATA), "a", DIGEST)
    assert files(tmp_path) == []


async def test_damage_on_disk_is_noticed(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.ingest(chunks(DATA), "a", DIGEST)
    store.path(DIGEST).write_bytes(b"rotten")
    with pytest.raises(DataLoss, match="damaged on disk"):
        await store.read(DIGEST)
    store.path(DIGEST).unlink()
    with pytest.raises(NotFound):
        await store.read(DIGEST)


async def test_delete_and_abort_are_idempotent(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.ingest(chunks(DATA), "a", DIGEST)
    for _ in range(2):
        await store.delete(DIGEST)
        await store.abort("a")
    assert files(tmp_path) == []
    with pytest.raises(NotFound):
        store.size(DIGEST)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "md5:" + "a" * 32, "sha256:../" + "a" * 61, DIGEST + "\n"]
)
def test_what_is_not_a_digest(text: str) -> None:
    with pytest.raises(InvalidArgument):
        validate_digest(text)


async def test_keys_cannot_leave_the_ingest_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        await (await opened(tmp_path)).ingest(chunks(DATA), "../a", DIGEST)


async def test_a_staged_file_is_there_for_as_long_as_it_is_used(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    async with store.staged(chunks(DATA), "a", DIGEST, len(DATA)) as path:
        assert path.read_bytes() == DATA
        assert not store.exists(DIGEST)
    assert files(tmp_path) == []
    with pytest.raises(KeyError):
        async with store.staged(chunks(DATA), "a"):
            raise KeyError
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("digest", "size", "what"),
    [(digest_of(b"other"), None, "has the digest"), (DIGEST, len(DATA) + 1, "ended after"), (DIGEST, 5, "longer")],
)
async def test_nothing_wrong_is_staged(tmp_path: Path, digest: str, size: int | None, what: str) -> None:
    store = await opened(tmp_path)
    with pytest.raises(DataLoss, match=what):
        async with store.staged(chunks(DATA), "a", digest, size):
            pytest.fail("it is not to be used")
    assert files(tmp_path) == []
    with pytest.raises(InvalidArgument, match="not a digest"):
        async with store.staged(chunks(DATA), "a", "sha256:../x"):
            pytest.fail("it is not to be used")


async def test_a_cancelled_staging_leaves_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    reached = asyncio.Event()

    async def use() -> None:
        async with store.staged(chunks(DATA), "a"):
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(tmp_path) == []


async def test_what_is_stored_is_stored_by_sha256(tmp_path: Path) -> None:
    """A blob under another digest would be there twice; what is only staged is verified by any."""
    store = await opened(tmp_path)
    digest = f"sha512:{hashlib.sha512(b'x').hexdigest()}"
    with pytest.raises(InvalidArgument, match=r"form sha256:<64 hex digits>$"):
        await store.ingest(chunks(b"x"), "key", digest)
    async with store.staged(chunks(b"x"), "key", digest, 1) as file:
        assert file.read_bytes() == b"x"
    with pytest.raises(DataLoss, match="has the digest sha512:"):
        async with store.staged(chunks(b"y"), "key", digest, 1):
            pass
    assert files(tmp_path) == []
