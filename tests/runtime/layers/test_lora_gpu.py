"""The Triton kernels on a CUDA device; `make test-gpu` runs these and says when there is none."""

import pytest
import torch

from graft_runtime.layers.lora.choose import GroupRows, backend
from tests.support.lora_kernel_cases import (
    DTYPES,
    MIXES,
    check_deep,
    check_isolation,
    check_mix,
)

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture
def group_rows() -> GroupRows:
    chosen = backend(CUDA)
    assert chosen.__module__ == "graft_runtime.layers.lora.triton"
    return chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_of_rows_equals_the_plain_loop(
    mix: str, dtype: torch.dtype, group_rows: GroupRows
) -> None:
    check_mix(mix, dtype, CUDA, group_rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_input_that_is_divided_equals_the_plain_loop(
    dtype: torch.dtype, group_rows: GroupRows
) -> None:
    check_deep(dtype, CUDA, group_rows)


def test_what_is_broken_reaches_nobody_else(group_rows: GroupRows) -> None:
    check_isolation(CUDA, group_rows)
