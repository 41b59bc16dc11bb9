"""The kernel in C agrees with the plain loop, and is left out where it cannot be had."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.layers.lora import native
from graft_runtime.layers.lora.base import LoraPool, ResidentAdapter
from graft_runtime.layers.lora.cpu import MIN_OWN_ROWS, LoraPart, PartedRows, group_rows
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice
from graft_runtime.layers.lora.native import NativeRows
from tests.support.lora_cases import CPU, KEY, PAGES, QKV, check, pool_of

WIDE = LoraGroup("qkv", 65, (LoraSlice("q", 256), LoraSlice("k", 515), LoraSlice("v", 31)))
"""Slices of exactly one chunk, of several and a rest, and of less than one."""

needs_kernel = pytest.mark.skipif(native.kernel() is None, reason="no C compiler was there")
pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def pool(group: LoraGroup = QKV, pages: dict[int, tuple[int, ...]] = PAGES) -> LoraPool:
    return pool_of(pages, group=group, dtype=torch.bfloat16)


def native_part(pool: LoraPool, slots: list[int]) -> PartedRows:
    rows = group_rows(pool, slots, CPU)
    assert rows is not None
    assert any(isinstance(part, NativeRows) for part in rows.parts)
    return rows


@needs_kernel
@pytest.mark.parametrize("group", [QKV, WIDE], ids=["narrow", "wide"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12))
def test_any_mix_of_rows_equals_the_plain_loop(
    group: LoraGroup, runs: list[tuple[int, int]]
) -> None:
    # What has many rows is torch's, which rounds more often.
    slots = list(itertools.chain(*([slot] * count for slot, count in runs)))
    every = [slot for slot in slots if slots.count(slot) < MIN_OWN_ROWS]
    check(pool(group), every, group_rows)


@needs_kernel
def test_few_rows_of_an_adapter_go_to_the_kernel_and_many_do_not() -> None:
    rows = native_part(pool(), [1] * MIN_OWN_ROWS + [2, 2, 0, 3])
    one, other = rows.parts
    assert isinstance(one, NativeRows)
    assert one.rows_n.tolist() == [16, 17, 19]
    assert isinstance(other, LoraPart)
    assert other.rows == slice(0, MIN_OWN_ROWS)


@needs_kernel
def test_an_adapter_is_left_out_of_groups_that_no_member_touches() -> None:
    some = pool(pages={1: (0,)})
    some.bind(1, ResidentAdapter((0,), 16, frozenset({(None, "lm_head")})))
    out = torch.ones(3, 18, dtype=torch.bfloat16)
    native_part(some, [1, 1, 1]).add(some.slabs[KEY], torch.ones(3, 12).bfloat16(), out)
    assert torch.equal(out, torch.ones(3, 18).bfloat16())


@needs_kernel
@pytest.mark.parametrize("fill", ["nan", "inf"])
def test_broken_weights_of_one_adapter_stay_in_its_own_rows(fill: str) -> None:
    some = pool(pages={1: (0,), 2: (1,)})
    some.slabs[KEY].a_PGRI[0].fill_(float(fill))
    for slots in ([1, 1, 0, 0, 2], [2, 1, 2, 1]):
        out = torch.zeros(len(slots), 18, dtype=torch.bfloat16)
        x = torch.ones(len(slots), 12).bfloat16()
        native_part(some, slots).add(some.slabs[KEY], x, out)
        mine = torch.tensor(slots) == 1
        assert not out[mine].isfinite().any()
        assert out[~mine].isfinite().all()


@needs_kernel
def test_sums_are_rounded_to_the_nearest_number_as_torch_does() -> None:
    some = pool(pages={1: (0,)})
    slab = some.slabs[KEY]
    slab.a_PGRI.zero_()
    bits = torch.arange(0, 2**15, 7, dtype=torch.int32) << 16
    base = bits.view(torch.float32).bfloat16()
    base = base[: len(base) // 18 * 18].view(-1, 18)
    for start in range(0, len(base), MIN_OWN_ROWS - 1):
        out = base[start : start + MIN_OWN_ROWS - 1].clone()
        native_part(some, [1] * len(out)).add(slab, torch.ones(len(out), 12).bfloat16(), out)
        same = base[start : start + len(out)]
        assert torch.equal(out.isnan(), same.isnan())
        assert torch.equal(out[~out.isnan()], same[~same.isnan()])


@needs_kernel
def test_a_pool_that_takes_the_place_of_another_is_read_where_it_lies() -> None:
    for _ in range(5):
        check(pool(), [1, 2, 3, 0, 5], group_rows)


def test_other_dtypes_are_left_to_torch() -> None:
    rows = group_rows(pool_of(PAGES), [1, 2], CPU)
    assert rows is not None
    assert not any(isinstance(part, NativeRows) for part in rows.parts)


@needs_kernel
def test_tensors_that_it_would_misread_are_refused() -> None:
    some = pool()
    rows, slab = native_part(some, [1, 2]), some.slabs[KEY]
    x, out = torch.zeros(2, 12).bfloat16(), torch.zeros(2, 18).bfloat16()
    for wrong in (x.float(), x.t().contiguous().t()):
        with pytest.raises(TypeError, match="not bfloat16 in rows"):
            rows.add(slab, wrong, out)
    with pytest.raises(TypeError, match="not bfloat16 in rows"):
        rows.add(slab, x, out.float())


def test_without_the_library_torch_does_it_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    native.kernel.cache_clear()
    try:
        assert native.kernel() is None
        assert "without the kernel in C" in caplog.text
        check(pool(), [1, 2, 0, 3], group_rows)
        (tmp_path / "_native.so").write_bytes(b"no library")
        native.kernel.cache_clear()
        assert native.kernel() is None
    finally:
        native.kernel.cache_clear()
