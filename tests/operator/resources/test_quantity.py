"""Quantities are written as an API server stores them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_operator.resources.quantity import canonical_quantity, quantity, quantity_value


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        (1, "1"),
        (0, "0"),
        ("0", "0"),
        (1000, "1k"),
        ("0.5", "500m"),
        ("1.5", "1500m"),
        ("1500m", "1500m"),
        ("2000m", "2"),
        ("0.5m", "500u"),
        ("64Gi", "64Gi"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1000Ki", "1000Ki"),
        ("1.001Ki", "1026"),
        ("1000M", "1G"),
        ("16.25G", "16250M"),
    ],
)
def test_a_quantity_has_one_notation(given_: int | str, stored: str) -> None:
    assert canonical_quantity(given_) == stored


NUMBERS = st.integers(0, 10**6).map(str) | st.decimals(0, 10**4, places=3).map(str)


@given(NUMBERS, st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_the_notation_is_stable_and_never_means_less(number: str, unit: str) -> None:
    text = canonical_quantity(number + unit)
    assert canonical_quantity(text) == text
    assert 0 <= quantity_value(text) - quantity_value(number + unit) < 1


@given(st.integers(1, 2**53))
def test_a_size_in_bytes_is_written_in_the_largest_unit_that_fits(num_bytes: int) -> None:
    text = quantity(num_bytes)
    assert quantity_value(text) == num_bytes
    assert canonical_quantity(text) == text or num_bytes < 1024
