"""Records: opaque bytes by key, damaged ones set aside."""

from __future__ import annotations

import pytest

from agent import metrics
from agent.errdefs import Unavailable
from agent.store.store import Store
from tests.unit.store.conftest import Clock, Directories, databases, make_unwritable, make_writable


async def test_put_delete_load(store: Store, directories: Directories, clock: Clock) -> None:
    pods, images = store.boot_records("pods"), store.disk_records("images")
    await pods.put("a", b"1")
    await pods.put("b", b"\0\xff" * 1000)
    await pods.put("a", b"2")
    await images.put("a", b"image")
    await pods.delete("gone")
    assert await pods.load() == {"a": b"2", "b": b"\0\xff" * 1000}
    assert await store.boot_records("images").load() == {}
    await pods.delete("b")
    await store.close()
    again = await directories.open(clock)
    assert await again.boot_records("pods").load() == {"a": b"2"}
    assert await again.disk_records("images").load() == {"a": b"image"}
    await again.close()


async def test_damaged_record_is_set_aside(store: Store, directories: Directories, clock: Clock) -> None:
    pods = store.boot_records("pods")
    await pods.put("good", b"1")
    await pods.put("bad", b"2")
    await databases(store)[0].write(lambda c: c.execute("UPDATE records SET data = x'33' WHERE key = 'bad'"))
    before = metrics.registry.get_sample_value("orlop_ledger_quarantined") or 0
    assert await pods.load() == {"good": b"1"}
    assert metrics.registry.get_sample_value("orlop_ledger_quarantined") == before + 1
    assert await pods.load() == {"good": b"1"}
    assert metrics.registry.get_sample_value("orlop_ledger_quarantined") == before + 1
    (bad,) = await store.quarantined()
    assert bad.to_json() == {"origin": "records", "name": "pods bad", "reason": "its checksum is wrong", "row": "3"}
    await pods.put("bad", b"new")
    assert await pods.load() == {"good": b"1", "bad": b"new"}
    await store.close()
    again = await directories.open(clock)
    assert metrics.registry.get_sample_value("orlop_ledger_quarantined") == 1
    await again.close()


async def test_unwritable(store: Store) -> None:
    pods = store.boot_records("pods")
    await pods.put("a", b"1")
    await pods.put("b", b"1")
    await make_unwritable(databases(store)[0])
    with pytest.raises(Unavailable):
        await pods.put("a", b"2")
    await pods.delete("b")
    await make_writable(databases(store)[0])
    assert await store.flush() == 0
    assert await pods.load() == {"a": b"1"}


async def test_key_of_another_bucket_isnt_touched(store: Store) -> None:
    one, other = store.boot_records("one"), store.boot_records("other")
    await one.put("k", b"1")
    await other.put("k", b"2")
    await one.delete("k")
    assert await other.load() == {"k": b"2"}
