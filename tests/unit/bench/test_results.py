"""Statistics of samples, and what becomes of measurements that have none."""

from __future__ import annotations

import pytest

from agent.bench.measurements import Measurement, table
from agent.bench.plan import Plan
from agent.bench.results import Results, ratio, summary


class TestSummary:
    def test_of_many(self) -> None:
        found = summary([5.0, 1.0, 2.0, 100.0, 3.0])
        assert found is not None
        assert (found.count, found.median, found.p95, found.mad, found.least, found.most) == (5, 3.0, 100.0, 2.0, 1.0, 100.0)

    def test_the_95th_percentile_is_a_sample(self) -> None:
        found = summary([float(value) for value in range(1, 101)])
        assert found is not None
        assert found.p95 == 95.0

    def test_of_one_and_of_none(self) -> None:
        one = summary([4.0])
        assert one is not None
        assert (one.median, one.p95, one.mad) == (4.0, 4.0, 0.0)
        assert summary([]) is None


class TestRatio:
    def test_of_medians(self) -> None:
        assert ratio(summary([1.0, 2.0, 9.0]), summary([4.0])) == 0.5

    @pytest.mark.parametrize(("one", "reference"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
    def test_none_without_both(self, one: list[float], reference: list[float]) -> None:
        assert ratio(summary(one), summary(reference)) is None


class TestResults:
    ROWS = (Measurement("a", "one", "A"), Measurement("b", "one", "B"), Measurement("c", "two", "C"))

    def test_a_family_that_fails_keeps_its_samples_and_the_first_reason(self) -> None:
        results = Results(self.ROWS, ["x", "y"])
        results.add("a", "x", 1.0)
        results.absent("b", "x", "no such call")
        results.failed("one", "x", "it broke")
        assert results.of("a", "x").values == [1.0]
        assert [results.of(key, "x").reason for key in "abc"] == ["it broke", "no such call", ""]
        assert results.of("a", "y").reason == ""

    def test_rows_of_others_are_added_once(self) -> None:
        results = Results(self.ROWS, ["x"])
        for _ in range(2):
            results.extend([Measurement("d", "critest", "D")])
            results.add("d", "x", 1.0)
        assert [row.key for row in results.measurements] == ["a", "b", "c", "d"]
        assert results.of("d", "x").values == [1.0, 1.0]


def test_every_measurement_has_a_key_of_its_own_and_a_whole_title() -> None:
    rows = table(Plan(image="x", containers=17, parallel=3).numbers)
    assert len({row.key for row in rows}) == len(rows)
    titles = {row.key: row.title for row in rows}
    assert titles["ListContainers"] == "ListContainers, 17 containers"
    assert titles["starts"] == "pods started per second, 3 at a time"
    assert {row.unit for row in rows if row.more_is_better} == {"1/s", "B/s"}
