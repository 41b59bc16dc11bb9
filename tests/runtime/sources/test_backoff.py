"""Pauses between attempts: bounded, growing, and never the same for all that failed together."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_runtime.sources.base import MAX_RESUMES, backoff_seconds
from graft_runtime.sources.endpoints import SourcePolicy

FIRST_SECONDS, LAST_SECONDS = 0.1, 2.0


def longest(attempt: int) -> float:
    return min(FIRST_SECONDS * 2.0 ** (attempt - 1), LAST_SECONDS)


@given(attempt=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_a_pause_is_between_half_of_its_length_and_all_of_it(attempt: int, seed: int) -> None:
    random.seed(seed)
    assert longest(attempt) / 2 <= backoff_seconds(attempt) <= longest(attempt)


def test_pods_that_failed_together_do_not_come_back_together() -> None:
    pauses = sorted(backoff_seconds(3) for _ in range(1000))
    assert len(set(pauses)) > 900
    # Evenly over the whole span, so that not even a tenth of them comes in one tenth of it twice.
    tenths = Counter(int((pause / longest(3) - 0.5) * 20) for pause in pauses)
    assert len(tenths) == 10
    assert max(tenths.values()) < 200


def test_the_pauses_of_all_attempts_together_are_bounded() -> None:
    """Resumes of a stream, and of each of them its requests: what a reader may wait at most."""
    retries = SourcePolicy().max_retries
    requests = sum(longest(attempt) for attempt in range(1, retries + 1))
    resumes = sum(longest(attempt) for attempt in range(1, MAX_RESUMES + 1))
    assert resumes + (MAX_RESUMES + 1) * requests == pytest.approx(3.5)
