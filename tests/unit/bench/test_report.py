"""The report: a document for programs, rows for people, a picture."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from agent.bench import picture, report
from agent.bench.measurements import Measurement, Unit
from agent.bench.results import Results

ABOUT = {"begun": "2026-11-24T12:00:00+00:00", "seconds": 61.2, "machine": {"kernel": "6.18", "cpus": 2, "load_before": 0.12}}
SVG = "{http://www.w3.org/2000/svg}"
ROWS = (
    Measurement("start", "pods", "pod start"),
    Measurement("rate", "parallel", "pods per second", "1/s"),
    Measurement("memory", "pods", "memory", "B"),
    Measurement("log", "logs", "log", "B/s"),
)


def results() -> Results:
    """Of a reference, and of another runtime that needs half the time, makes 4 times as many pods, and has no memory to tell."""
    found = Results(ROWS, ["reference 1", "other <2>"])
    for name, start, rate in (("reference 1", 0.2, 5.0), ("other <2>", 0.1, 20.0)):
        for spread in (0.9, 1.0, 1.1):
            found.add("start", name, start * spread)
        found.add("rate", name, rate)
    found.add("memory", "reference 1", 40 << 20)
    found.absent("memory", "other <2>", "as root only")
    return found


@pytest.fixture
def document() -> dict[str, Any]:
    return report.document(results(), ABOUT)


class TestDocument:
    def test_survives_json(self, document: dict[str, Any]) -> None:
        assert json.loads(json.dumps(document)) == document
        assert (document["schema"], document["begun"]) == (report.SCHEMA, "2026-11-24T12:00:00+00:00")
        assert document["sockets"] == ["reference 1", "other <2>"]

    def test_a_measurement(self, document: dict[str, Any]) -> None:
        start = document["measurements"][0]
        assert {key: start[key] for key in ("key", "family", "title", "unit", "more_is_better")} == {
            "key": "start", "family": "pods", "title": "pod start", "unit": "s", "more_is_better": False,
        }  # fmt: skip
        reference, other = start["results"]
        assert (reference["socket"], reference["ratio"], reference["reason"]) == ("reference 1", 1.0, "")
        assert other["ratio"] == pytest.approx(0.5)
        assert other["samples"] == pytest.approx([0.09, 0.1, 0.11])
        assert set(other["summary"]) == {"count", "median", "p95", "mad", "least", "most"}

    def test_what_is_missing_has_a_reason(self, document: dict[str, Any]) -> None:
        missing = [
            (row["key"], result["socket"], result["reason"])
            for row in document["measurements"]
            for result in row["results"]
            if result["summary"] is None
        ]
        never = "it was not measured with this socket"
        assert missing == [("memory", "other <2>", "as root only"), ("log", "reference 1", never), ("log", "other <2>", never)]


class TestMachine:
    def test_in_a_line(self, document: dict[str, Any]) -> None:
        assert report.machine(document) == "2026-11-24T12:00:00+00:00, 61 s, Linux 6.18, 2 CPUs, load 0.1 before"

    def test_a_busy_one(self, document: dict[str, Any]) -> None:
        document["machine"] = {**document["machine"], "load_before": 1.5}
        assert report.machine(document).endswith("load 1.5 before: a busy machine")


class TestRows:
    def test_sockets_side_by_side(self, document: dict[str, Any]) -> None:
        assert report.columns(document) == ["measurement", "reference 1", "other <2>", "ratio"]
        start, rate, memory, _ = report.rows(document)
        assert start == {
            "measurement": "pod start", "reference 1": "200 ms ±20.0 (p95 220)", "other <2>": "100 ms ±10.0 (p95 110)", "ratio": "0.50",
        }  # fmt: skip
        assert (rate["other <2>"], rate["ratio"]) == ("20.0 /s", "4.00")
        assert (memory["reference 1"], memory["other <2>"], memory["ratio"]) == ("40.0 MiB", "n/a", "")

    def test_three_sockets_have_two_ratios(self) -> None:
        columns = report.columns({"sockets": ["a", "b", "c"]})
        assert columns == ["measurement", "a", "b", "ratio of b", "c", "ratio of c"]

    def test_one_socket_has_none(self) -> None:
        document = report.document(Results(ROWS, ["a"]), ABOUT)
        assert report.columns(document) == ["measurement", "a"]
        assert report.rows(document)[0] == {"measurement": "pod start", "a": "n/a"}

    def test_reasons_are_told_once(self) -> None:
        found = results()
        found.absent("start", "other <2>", "it died")
        found.absent("rate", "other <2>", "it died")
        sentences = report.reasons(report.document(found, ABOUT))
        assert "other <2>: pod start (only 3 samples), pods per second (only 1 samples): it died" in sentences
        assert "other <2>: memory (n/a): as root only" in sentences

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (0.00123, "s", "1.23 ms"),
            (12.34, "s", "12.3 s"),
            (3 << 20, "B", "3.00 MiB"),
            (45e6, "B/s", "45.0 MB/s"),
            (7.0, "1/s", "7.00 /s"),
        ],
    )
    def test_units(self, value: float, unit: Unit, text: str) -> None:
        assert report.spread({"median": value, "count": 1}, unit) == text


class TestPicture:
    def bars(self, document: dict[str, Any]) -> list[float]:
        root = ElementTree.fromstring(picture.svg(document))
        assert root.tag == f"{SVG}svg"
        return [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if bar.attrib.get("x") == "430"]

    def test_shorter_is_better_whatever_is_measured(self, document: dict[str, Any]) -> None:
        reference, half, same, quarter = self.bars(document)
        assert (half / reference, same / reference, quarter / reference) == pytest.approx((0.5, 1.0, 0.25), abs=0.01)

    def test_what_only_one_has_is_left_out(self, document: dict[str, Any]) -> None:
        text = picture.svg(document)
        assert ">pod start<" in text
        assert ">memory<" not in text

    def test_names_are_text(self, document: dict[str, Any]) -> None:
        document["sockets"][1] = 'x"><script>\x00'
        document["measurements"][0]["title"] = "a < b & \x1b[31m"
        texts = [text.text for text in ElementTree.fromstring(picture.svg(document)).iter(f"{SVG}text")]
        assert 'x"><script>?' in texts
        assert "a < b & ?[31m" in texts

    def test_a_bar_that_would_leave_the_picture_is_cut_and_says_so(self) -> None:
        found = Results(ROWS[:1], ["a", "b"])
        found.add("start", "a", 0.1)
        found.add("start", "b", 1.0)
        document = report.document(found, ABOUT)
        assert self.bars(document) == [190.0, 380.0]
        assert ">···<" in picture.svg(document)

    def test_a_whisker_is_the_median_deviation(self, document: dict[str, Any]) -> None:
        root = ElementTree.fromstring(picture.svg(document))
        widths = [float(line.attrib["x2"]) - float(line.attrib["x1"]) for line in root.iter(f"{SVG}line")]
        assert widths == pytest.approx([0.0, 2 * 19.0, 2 * 9.5], abs=0.2)  # the line at 1, and 10 % to both sides of either
