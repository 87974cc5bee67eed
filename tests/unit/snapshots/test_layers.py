from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from agent.snapshots.layers import RECORD, Layer, chain, chain_id, chain_ids, closure, link, load_layers, short_name, write_settled_record

DIFFS = tuple(f"sha256:{letter * 64}" for letter in "abc")
BASE = Layer(DIFFS[0], "", DIFFS[0], "0", 1, 1, False)


def stacked(*opaque: bool) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    parent = ""
    for diff_id, is_opaque in zip(DIFFS, opaque, strict=False):
        top = chain_id(parent, diff_id)
        layers[top] = Layer(top, parent, diff_id, str(len(layers)), 1, 1, is_opaque)
        parent = top
    return layers


def test_chain_ids_as_the_spec_has_them() -> None:
    """The second one was computed with sha256sum."""
    assert chain_ids(DIFFS[:2]) == [DIFFS[0], "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"]


def test_chains() -> None:
    layers = stacked(False, False, False)
    ids = list(layers)
    assert [layer.chain_id for layer in chain(layers, ids[2])] == ids[::-1]
    assert chain(layers, "") == []
    with pytest.raises(KeyError):
        chain({ids[2]: layers[ids[2]]}, ids[2])


def test_an_opaque_layer_ends_the_chain_but_keeps_its_parents() -> None:
    layers = stacked(False, True, False)
    ids = list(layers)
    assert [layer.chain_id for layer in chain(layers, ids[2])] == [ids[2], ids[1]]
    assert closure(layers, {ids[2]}) == set(ids)


def test_short_names_are_short_and_distinct() -> None:
    names = [short_name(number) for number in range(5000)]
    assert len(set(names)) == 5000
    assert max(map(len, names)) == 3
    assert [int(name, 36) for name in names] == list(range(5000))


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"[1]",
        b"7",
        b"{}",
        json.dumps({**asdict(BASE), "chain_id": DIFFS[1]}).encode(),
        json.dumps({**asdict(BASE), "short": "../x"}).encode(),
        json.dumps({**asdict(BASE), "size": "many"}).encode(),
        json.dumps({**asdict(BASE), "more": 1}).encode(),
    ],
)
def test_bad_records_are_set_aside(tmp_path: Path, record: bytes) -> None:
    good, bad = tmp_path / ("b" * 64), tmp_path / ("a" * 64)
    for directory in (good, bad):
        (directory / "fs").mkdir(parents=True)
    write_settled_record(good, replace(BASE, chain_id=DIFFS[1]))
    (bad / RECORD).write_bytes(record)
    assert load_layers(tmp_path, "boot") == ({DIFFS[1]: replace(BASE, chain_id=DIFFS[1])}, [], [bad])


def test_links_are_made_and_repaired(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "layers" / ("a" * 64) / "fs").mkdir(parents=True)
    for _ in range(2):
        link(tmp_path / "l", BASE, tmp_path / "layers")
        assert (tmp_path / "l/0").resolve() == tmp_path / "layers" / ("a" * 64) / "fs"
    (tmp_path / "l/0").unlink()
    (tmp_path / "l/0").symlink_to("elsewhere")
    link(tmp_path / "l", BASE, tmp_path / "layers")
    assert (tmp_path / "l/0").is_dir()
    assert [path.name for path in (tmp_path / "l").iterdir()] == ["0"]
