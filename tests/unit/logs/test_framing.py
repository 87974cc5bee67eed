"""The CRI log format: records for a stream's bytes, whatever the chunks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs.framing import CLOCK_SET_BACK, LONGEST_LINE, Framer
from tests.unit.logs.toolbox import contents, records, text

NOON = 1_700_000_000_123_456_789
"""2023-11-14T22:13:20 UTC."""


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def stamps(log: bytes) -> list[str]:
    return [stamp for stamp, _, _, _ in records(log)]


def test_a_line_is_one_record_in_local_time() -> None:
    assert Framer("stderr").feed(b"hello\n", NOON) == b"2023-11-14T23:13:20.123456789+01:00 stderr F hello\n"


@pytest.mark.parametrize(
    ("zone", "suffix"),
    [("UTC", b"22:13:20.123456789Z"), ("Asia/Kolkata", b"03:43:20.123456789+05:30"), ("America/St_Johns", b"18:43:20.123456789-03:30")],
)
def test_the_offset_is_rfc_3339s(zone: str, suffix: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    assert Framer("stdout").feed(b"\n", NOON).split(b" ")[0].endswith(suffix)


def test_lines_of_a_chunk_differ_by_a_nanosecond_across_a_second() -> None:
    log = Framer("stdout").feed(b"same\n" * 1500, 1_700_000_000_999_999_500)
    assert stamps(log)[0] == "2023-11-14T23:13:20.999999500"
    assert stamps(log)[499:501] == ["2023-11-14T23:13:20.999999999", "2023-11-14T23:13:21.000000000"]
    assert stamps(log)[-1] == "2023-11-14T23:13:21.000000999"


def test_timestamps_rise_while_the_clock_stands_or_slips_back() -> None:
    framer = Framer("stdout")
    log = framer.feed(b"a\nb\n", NOON) + framer.feed(b"c\n", NOON) + framer.feed(b"d\n", NOON - 1000)
    assert stamps(log) == sorted(set(stamps(log)))


def test_a_clock_that_was_set_back_is_followed() -> None:
    framer = Framer("stdout")
    framer.feed(b"a\n", NOON)
    assert framer.feed(b"b\n", NOON - CLOCK_SET_BACK - 1).startswith(b"2023-11-14T23:13:19.123456788")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([b"a\r\n"], [("F", b"a")], id="crlf"),
        pytest.param([b"a\r", b"\n"], [("F", b"a")], id="crlf in two chunks"),
        pytest.param([b"a\r\r\n"], [("F", b"a\r")], id="one carriage return is dropped"),
        pytest.param([b"a\rb\n"], [("F", b"a\rb")], id="a carriage return within"),
        pytest.param([b"\n\n"], [("F", b""), ("F", b"")], id="empty lines"),
        pytest.param([b"abcd\n"], [("F", b"abcd")], id="as long as the limit"),
        pytest.param([b"abcd\r\n"], [("F", b"abcd")], id="as long as the limit, crlf"),
        pytest.param([b"abcd\r", b"\n"], [("F", b"abcd")], id="as long as the limit, crlf in two chunks"),
        pytest.param([b"abcde\n"], [("P", b"abcd"), ("F", b"e")], id="one over"),
        pytest.param([b"abcd\re\n"], [("P", b"abcd"), ("F", b"\re")], id="a carriage return at the limit"),
        pytest.param([b"abcdefgh\nx\n"], [("P", b"abcd"), ("F", b"efgh"), ("F", b"x")], id="twice the limit"),
        pytest.param([b"a\nabcdefghi"], [("F", b"a"), ("P", b"abcd"), ("P", b"efgh")], id="over the limit, unfinished"),
        pytest.param([b"\xff\x00\n"], [("F", b"\xff\x00")], id="not text"),
    ],
)
def test_records(chunks: list[bytes], expected: list[tuple[str, bytes]]) -> None:
    framer = Framer("stdout", max_line=4)
    assert contents(b"".join(framer.feed(chunk, NOON) for chunk in chunks)) == expected


def test_an_unfinished_line_is_held_and_ends_as_partial() -> None:
    framer = Framer("stdout")
    assert framer.feed(b"no newline", NOON) == b""
    assert framer.held == 10
    assert contents(framer.finish(NOON)) == [("P", b"no newline")]
    assert framer.held == 0
    assert framer.finish(NOON) == b""


def test_what_is_put_back_may_be_fed_again() -> None:
    framer = Framer("stdout")
    assert contents(framer.feed(b"one\ntw", NOON)) == [("F", b"one")]
    assert framer.put_back() == 2
    assert framer.held == 0
    assert contents(framer.feed(b"two\n", NOON)) == [("F", b"two")]


@pytest.mark.parametrize("max_line", [-1, 0])
def test_no_limit_is_a_high_one(max_line: int) -> None:
    framer = Framer("stdout", max_line)
    log = framer.feed(b"x" * LONGEST_LINE, NOON) + framer.feed(b"y\n", NOON)
    assert [(tag, len(content)) for tag, content in contents(log)] == [("P", LONGEST_LINE), ("F", 1)]


_alphabet = st.sampled_from([b"a", b"bb", b"\n", b"\r", b"\r\n", b"\xff", b"\x00", b"a long word "])
_streams = st.lists(_alphabet, max_size=60).map(b"".join)


def _framed(stream: bytes, cuts: list[int], max_line: int) -> bytes:
    framer = Framer("stdout", max_line)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    log = b"".join(framer.feed(stream[start:stop], NOON + start) for start, stop in itertools.pairwise(edges))
    return log + framer.finish(NOON + len(stream))


@given(stream=_streams, cuts=st.lists(st.integers(0, 200), max_size=10), max_line=st.sampled_from([-1, 1, 2, 3, 7, 16384]))
def test_any_chunking_gives_the_same_content(stream: bytes, cuts: list[int], max_line: int) -> None:
    log = _framed(stream, cuts, max_line)
    assert contents(log) == contents(_framed(stream, [], max_line))

    assert text(log) == stream.replace(b"\r\n", b"\n")
    assert max_line < 0 or all(len(content) <= max_line for _, content in contents(log))
    assert stamps(log) == sorted(set(stamps(log)))


@given(stream=_streams, cuts=st.lists(st.integers(0, 200), max_size=10), max_line=st.sampled_from([-1, 3, 7]))
def test_putting_back_after_every_chunk_loses_nothing(stream: bytes, cuts: list[int], max_line: int) -> None:
    """What the copier does: it feeds what it sees in the pipe, and takes from the pipe what is settled."""
    framer, pipe, log, start = Framer("stdout", max_line), b"", b"", 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        pipe, start = pipe + stream[start:cut], cut
        log += framer.feed(pipe, NOON)
        pipe = pipe[len(pipe) - framer.put_back() :]
    log += framer.feed(pipe, NOON) + framer.finish(NOON)
    assert contents(log) == contents(_framed(stream, [], max_line))
