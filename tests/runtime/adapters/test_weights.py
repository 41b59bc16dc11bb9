import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft_runtime.adapters.weights import ServingDtype, cast, is_finite, is_zero, to_float32

TORCH: dict[ServingDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)


def torch_bits(values: list[float], dtype: torch.dtype) -> list[int]:
    kinds = {2: torch.int16, 4: torch.int32}
    stored = torch.tensor(values, dtype=torch.float32).to(dtype)
    return [int(bits) for bits in stored.view(kinds[stored.element_size()])]


@pytest.mark.parametrize("dtype", TORCH)
@given(values=FLOATS)
def test_rounding_is_torchs_bit_for_bit(dtype: ServingDtype, values: list[float]) -> None:
    stored = cast(np.array(values, np.float32), dtype)
    kind = {2: "<i2", 4: "<i4"}[stored.dtype.itemsize]
    expected = torch_bits(values, TORCH[dtype])
    assert [int(bits) for bits in stored.view(kind)] == expected


@pytest.mark.parametrize("dtype", TORCH)
@given(values=FLOATS)
def test_overflow_and_zero_are_what_torch_says(dtype: ServingDtype, values: list[float]) -> None:
    stored = cast(np.array(values, np.float32), dtype)
    expected = torch.tensor(values, dtype=torch.float32).to(TORCH[dtype])
    assert is_finite(stored, dtype) == bool(torch.isfinite(expected).all())
    assert is_zero(stored, dtype) == bool((expected == 0).all())


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "BF16"), ("float16", "F16")])
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_reading_is_exact(dtype: ServingDtype, name: str, bits: list[int]) -> None:
    raw = np.array(bits, "<u2")
    expected = torch.from_numpy(raw.view("<i2").copy()).view(TORCH[dtype]).float()
    assert np.array_equal(to_float32(raw.tobytes(), name), expected.numpy(), equal_nan=True)


def test_a_value_that_rounds_up_to_infinity_is_not_finite() -> None:
    largest = np.array([np.finfo(np.float32).max], np.float32)
    assert is_finite(cast(largest, "float32"), "float32")
    assert not is_finite(cast(largest, "bfloat16"), "bfloat16")
