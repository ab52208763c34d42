"""Delays double, stay bounded, are spread by jitter, and begin anew after a success."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.backoff import Backoff


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(0.25, 3.0, jitter=0.0)
    assert [backoff.next() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.failures == 6
    backoff.reset()
    assert backoff.next() == 0.25


def test_a_steady_attempt_starts_anew_and_a_short_one_does_not() -> None:
    backoff = Backoff(1.0, 60.0, jitter=0.0, steady=5.0)
    assert [backoff.next(), backoff.next(worked_for=4.9), backoff.next(worked_for=5.0)] == [1.0, 2.0, 1.0]


def test_a_lower_bound_holds_for_one_delay_only() -> None:
    backoff = Backoff(4.0, 60.0, jitter=0.0)
    assert [backoff.next(longest=3.0), backoff.next(longest=3.0), backoff.next()] == [3.0, 3.0, 16.0]


@given(failures=st.integers(0, 5000), seed=st.integers())
def test_no_delay_is_longer_than_the_longest_with_jitter(failures: int, seed: int) -> None:
    backoff = Backoff(0.25, 15.0, rng=random.Random(seed))
    backoff.failures = failures
    assert 0.125 <= backoff.next() <= 22.5


def test_two_nodes_do_not_retry_in_step() -> None:
    one, other = Backoff(1.0, 60.0, rng=random.Random(1)), Backoff(1.0, 60.0, rng=random.Random(2))
    assert [one.next() for _ in range(5)] != [other.next() for _ in range(5)]
