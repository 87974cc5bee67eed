"""The reader behind `orlop logs -f`: nothing twice, nothing lost, whatever happens to the file meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli.logs import LogReader


def test_only_whole_records(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(b"one\ntw")
    reader = LogReader(log)
    assert list(reader.records()) == [b"one"]
    assert list(reader.records()) == []
    with log.open("ab") as file:
        file.write(b"o\nthree\n")
    assert list(reader.records()) == [b"two", b"three"]
    reader.close()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogReader(tmp_path / "0.log")


def test_a_rotated_file_is_read_to_its_end_first(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(b"one\n")
    reader = LogReader(log)
    assert list(reader.records()) == [b"one"]
    log.rename(tmp_path / "0.log.1")
    assert list(reader.records()) == [], "the new file isn't there yet"
    with (tmp_path / "0.log.1").open("ab") as old:
        old.write(b"two\n")
    log.write_bytes(b"three\n")
    assert list(reader.records()) == [b"two", b"three"]
    reader.close()


@settings(max_examples=50)
@given(steps=st.lists(st.one_of(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b" ") + b"\n"), st.none()), max_size=20))
def test_every_record_once_through_any_number_of_rotations(tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | None]) -> None:
    """None is a rotation; the reader looks after each step, as it may."""
    log = tmp_path_factory.mktemp("logs") / "0.log"
    log.touch()
    reader, found = LogReader(log), []
    for number, step in enumerate(steps):
        if step is None:
            log.rename(log.with_suffix(f".{number}"))
            log.touch()
        else:
            with log.open("ab") as file:
                file.write(step)
        found += list(reader.records())
    reader.close()
    assert found == [step[:-1] for step in steps if step is not None]
