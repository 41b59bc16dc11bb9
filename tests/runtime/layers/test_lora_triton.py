"""The Triton kernels, interpreted: they agree with the plain loop that every backend is held to."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from graft_runtime.layers.lora import cpu
from graft_runtime.layers.lora.choose import GroupRows, backend
from tests.support.lora_cases import CPU, PAGES, pool_of
from tests.support.lora_kernel_cases import (
    DTYPES,
    MIXES,
    check_deep,
    check_isolation,
    check_mix,
)


@pytest.fixture(scope="module")
def group_rows() -> Iterator[GroupRows]:
    """Read the kernels with Triton's interpreter switched on, which is decided when they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        kernels = importlib.import_module("graft_runtime.layers.lora.triton")
        patch.setattr(InterpreterBuilder, "create_dot", _dot)
        patch.setattr(InterpreterBuilder, "cast_impl", _cast)
        yield kernels.group_rows


_create_dot = InterpreterBuilder.create_dot
_cast_impl = InterpreterBuilder.cast_impl


def _cast(builder: InterpreterBuilder, source: Any, dtype: Any) -> Any:
    """Round to nearest as a device does: the interpreter would cut bits off."""
    if dtype.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return TensorHandle(rounded.view(torch.uint16).numpy(), dtype.scalar)
    return _cast_impl(builder, source, dtype)


def _dot(builder: InterpreterBuilder, a: Any, b: Any, *rest: Any) -> Any:
    """Multiply as a device does: the interpreter would take bfloat16's bits for integers."""
    wide = [
        builder.cast_impl(one, tl.float32) if one.dtype.scalar == tl.bfloat16 else one
        for one in (a, b)
    ]
    return _create_dot(builder, *wide, *rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_of_rows_equals_the_plain_loop(
    mix: str, dtype: torch.dtype, group_rows: GroupRows
) -> None:
    check_mix(mix, dtype, CPU, group_rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_input_that_is_divided_equals_the_plain_loop(
    dtype: torch.dtype, group_rows: GroupRows
) -> None:
    check_deep(dtype, CPU, group_rows)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_what_is_broken_reaches_nobody_else(group_rows: GroupRows) -> None:
    check_isolation(CPU, group_rows)


def test_rows_without_adapters_are_no_work(group_rows: GroupRows) -> None:
    assert group_rows(pool_of(PAGES), [0, 0], CPU) is None


@pytest.mark.usefixtures("group_rows")
def test_every_row_is_in_one_tile_with_its_adapters_pages() -> None:
    slots = [3, 0, *[1] * 20, 3, 2]
    kernels = importlib.import_module("graft_runtime.layers.lora.triton")
    rows = kernels.group_rows(pool_of(PAGES), slots, CPU)
    ordered = [slots[row] for row in rows.rows_n.tolist()]
    for first, count, first_page, num_pages in rows.tiles_t4.tolist():
        (slot,) = set(ordered[first : first + count])
        assert tuple(rows.pages[first_page : first_page + num_pages].tolist()) == PAGES[slot]
    assert sorted(rows.rows_n.tolist()) == [row for row, slot in enumerate(slots) if slot]
    assert sum(count for _, count, *_ in rows.tiles_t4.tolist()) == len(ordered)


@pytest.mark.usefixtures("group_rows")
def test_a_deep_input_is_divided_only_while_programs_lack() -> None:
    kernels = importlib.import_module("graft_runtime.layers.lora.triton")
    assert kernels.divide(4096, 8) == (8, 4)
    assert kernels.divide(4096, 500) == (1, 32)
    assert kernels.divide(12, 1) == (1, 1)
    for features in (12, 300, 1200, 2816, 14336):
        for programs in (1, 24, 64, 300):
            parts, blocks = kernels.divide(features, programs)
            assert (parts - 1) * blocks * 128 < features <= parts * blocks * 128


def test_on_a_cpu_plain_torch_is_chosen() -> None:
    assert backend(CPU) is cpu.group_rows
