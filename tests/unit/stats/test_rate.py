"""Nano-cores from samples of a counter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.stats import Rate

S = 1_000_000_000


def test_the_first_sample_has_no_rate() -> None:
    assert Rate().update(5 * S, 3 * S) is None


def test_half_a_core() -> None:
    rate = Rate()
    rate.update(0, 7 * S)
    assert rate.update(10 * S, 12 * S) == S // 2


def test_the_same_sample_twice_has_the_same_rate() -> None:
    rate = Rate()
    rate.update(0, 0)
    rate.update(10 * S, 10 * S)
    assert rate.update(10 * S, 10 * S) == S


def test_two_who_ask_right_after_each_other_both_get_the_long_average() -> None:
    rate = Rate()
    for clock, usage in ((0, 0), (10 * S, 10 * S)):
        rate.update(clock, usage)
    # In the tenth of a second since then nothing was used, which says nothing of the container.
    assert rate.update(10 * S + S // 10, 10 * S) == 10 * S * S // (10 * S + S // 10)
    assert rate.update(20 * S, 10 * S) == 0


def test_of_less_than_a_second_nothing_is_said() -> None:
    rate = Rate()
    rate.update(0, 0)
    assert rate.update(S // 10, S // 10) is None
    assert rate.update(S - 1, S - 1) is None
    assert rate.update(2 * S, S) == S // 2


def test_a_counter_that_starts_anew_has_no_rate_until_it_goes_on() -> None:
    rate = Rate()
    rate.update(0, 10 * S)
    rate.update(10 * S, 20 * S)
    assert rate.update(20 * S, 1) is None
    assert rate.update(30 * S, 1 + 5 * S) == S // 2


@given(st.lists(st.tuples(st.integers(S, 30 * S), st.integers(0, 4)), min_size=2))
def test_a_rate_is_between_the_least_and_the_most_that_was_used(steps: list[tuple[int, int]]) -> None:
    rate = Rate()
    clock = usage = 0
    rate.update(clock, usage)
    cores = [cores for _, cores in steps]
    for duration, used_cores in steps:
        clock, usage = clock + duration, usage + duration * used_cores
        found = rate.update(clock, usage)
        assert found is not None
        assert min(cores) * S <= found <= max(cores) * S
