"""Batched adapters equal a plain loop over rows, and never reach rows that are not theirs."""

import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graft_runtime.layers.lora.base import MAX_WINDOWS, LoraPool, LoraSlab, ResidentAdapter
from graft_runtime.layers.lora.cpu import LoraRows, group_rows
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice, pages_for

# Shape legend: P pages, R = PAGE_RANK, o features out of one slice.

CPU = torch.device("cpu")
QKV = LoraGroup("qkv", 12, (LoraSlice("q", 10), LoraSlice("k", 4), LoraSlice("v", 4)))
KEY = (0, "qkv")


class OneGroup:
    """The smallest model that has an adaptable layer."""

    num_layers = 1
    lora_groups = (QKV,)
    lm_head_group = LoraGroup("lm_head", 12, (LoraSlice("lm_head", 6),))


def pool_of(pages_of: Mapping[int, tuple[int, ...]], num_pages: int = 24) -> LoraPool:
    """Fill every page, owned or not, so that reading a wrong one shows."""
    pool = LoraPool(OneGroup(), num_pages=num_pages, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(1)
    for slab in pool.slabs.values():
        slab.a_PGRI.normal_(generator=generator)
        for b_PRo in slab.b_PRo:
            b_PRo.normal_(generator=generator)
    for slot, pages in pages_of.items():
        pool.bind(slot, ResidentAdapter(pages, 16 * len(pages), frozenset(pool.slabs)))
    return pool


def plain(pool: LoraPool, slab: LoraSlab, slots: list[int], x: Tensor, out: Tensor) -> Tensor:
    """Add each row's adapter, row by row, slice by slice, page by page, in float64."""
    result = out.double()
    for row, slot in enumerate(slots):
        if not slot or slab.key not in pool.adapter(slot).touched:
            continue
        for page in pool.adapter(slot).pages:
            starts = zip(slab.group.slice_starts, slab.group.slices, strict=True)
            for index, (start, part) in enumerate(starts):
                columns = slice(start, start + part.out_features)
                h = slab.a_PGRI[page, index].double() @ x[row].double()
                result[row, columns] += h @ slab.b_PRo[index][page].double()
    return result


def check(pool: LoraPool, slots: list[int]) -> None:
    slab = pool.slabs[KEY]
    x, out = torch.randn(len(slots), 12), torch.randn(len(slots), 18)
    expected = plain(pool, slab, slots, x, out)
    before = out.clone()
    group_rows(pool, slots, CPU).add(slab, x, out)
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)
    base = [row for row, slot in enumerate(slots) if slot == 0]
    assert torch.equal(out[base], before[base])


PAGES = {1: (0,), 2: (1, 2), 3: (9, 4, 23), 4: (5,), 5: (20,)}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=6))
def test_any_mix_of_rows_equals_the_plain_loop(runs: list[tuple[int, int]]) -> None:
    check(pool_of(PAGES), list(itertools.chain(*([slot] * count for slot, count in runs))))


@pytest.mark.parametrize("slot", PAGES)
def test_one_adapter_for_all_rows(slot: int) -> None:
    check(pool_of(PAGES), [slot] * 7)


def test_pages_far_apart_and_close_together_give_the_same() -> None:
    for pages in ({1: (0,), 2: (23,)}, {1: (4,), 2: (5,)}, {1: (4,), 2: (7,)}):
        check(pool_of(pages), [1, 2, 0, 2, 1])


def test_an_adapter_is_left_out_of_groups_it_does_not_touch() -> None:
    pool = pool_of({1: (0,), 2: (1,)})
    pool.bind(1, ResidentAdapter((0,), 16, frozenset({(None, "lm_head")})))
    for b_PRo in pool.slabs[KEY].b_PRo:
        b_PRo[0].zero_()  # as the slot pool leaves it
    check(pool, [1, 2, 1, 0])
    out = torch.ones(3, 18)
    group_rows(pool, [1, 1, 1], CPU).add(pool.slabs[KEY], torch.ones(3, 12), out)
    assert torch.equal(out, torch.ones(3, 18))


@pytest.mark.parametrize("fill", ["nan", "inf"])
def test_broken_weights_of_one_adapter_stay_in_its_own_rows(fill: str) -> None:
    pool = pool_of({1: (0,), 2: (1,)})
    pool.slabs[KEY].a_PGRI[0].fill_(float(fill))
    for slots in ([1, 1, 0, 0, 0, *[2] * 20], [1, 1, 0, 2, 2, 2], [2, 1, 2, 1], [1, 1, 2, 2]):
        out = torch.zeros(len(slots), 18)
        group_rows(pool, slots, CPU).add(pool.slabs[KEY], torch.ones(len(slots), 12), out)
        mine = torch.tensor(slots) == 1
        assert not out[mine].isfinite().any()
        assert out[~mine].isfinite().all()


def test_a_broken_row_stays_alone() -> None:
    pool = pool_of(PAGES)
    x, out = torch.ones(6, 12), torch.zeros(6, 18)
    x[0] = float("nan")  # also what empty places take
    group_rows(pool, [1, 4, 4, 5, 4, 2], CPU).add(pool.slabs[KEY], x, out)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def test_few_and_many_rows_are_not_padded_to_one_another() -> None:
    pool = pool_of({slot: (slot - 1,) for slot in range(1, 21)})
    slots = [1] * 15 + [2] * 5 + list(range(3, 20))
    parts = group_rows(pool, slots, CPU).parts
    assert sorted(part.num_adapters for part in parts) == [2, 17]
    check(pool, slots)


def test_rows_in_the_order_of_their_pages_are_read_in_place() -> None:
    (part,) = group_rows(pool_of(PAGES), [0, 1, 1, 1, 2, 2, 0, 0], CPU).parts[:1]
    assert isinstance(part.rows, slice)
    (part,) = group_rows(pool_of({1: (3,), 2: (4,)}), [0, 1, 1, 2, 2], CPU).parts
    assert (part.rows, part.pages) == (slice(1, 5), slice(3, 5))


def test_what_is_remembered_of_a_window_follows_its_pages() -> None:
    pool = pool_of({1: (3,), 2: (4,)})
    for fill in (1.0, 2.0):
        for slab in pool.slabs.values():
            slab.a_PGRI[3:5].normal_().mul_(fill)
            for b_PRo in slab.b_PRo:
                b_PRo[3:5].normal_()
        check(pool, [0, 1, 1, 2, 2])


def test_windows_are_remembered_in_bounded_number() -> None:
    pool = pool_of({}, num_pages=MAX_WINDOWS + 2)
    slab = pool.slabs[KEY]
    for page in range(MAX_WINDOWS + 1):
        first = slab.factors(slice(page, page + 1), 1)
        assert slab.factors(slice(page, page + 1), 1) is first
        assert first.a_KIC.data_ptr() == slab.a_PGRI[page].data_ptr()
    assert slab.factors(slice(0, 1), 1).a_KIC.data_ptr() == slab.a_PGRI.data_ptr()


def test_no_adapted_row_is_no_work() -> None:
    assert group_rows(pool_of(PAGES), [0, 0, 0], CPU) == LoraRows(())


def test_pages_follow_the_rank() -> None:
    assert [pages_for(rank) for rank in (1, 15, 16, 17, 32, 33, 64)] == [1, 1, 1, 2, 2, 3, 4]
