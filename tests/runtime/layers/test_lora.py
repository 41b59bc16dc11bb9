"""Batched adapters equal a plain loop over rows, and never reach rows that are not theirs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.layers.lora.base import MAX_WINDOWS, LoraPool, ResidentAdapter, rows_by_slot
from graft_runtime.layers.lora.cpu import LoraPart, PartedRows, group_rows
from graft_runtime.layers.lora.layout import pages_for
from tests.support.lora_cases import CPU, KEY, PAGES, check, pool_of

# Shape legend: P pages, R = PAGE_RANK, o features out of one slice.


def parted(pool: LoraPool, slots: list[int]) -> PartedRows:
    rows = group_rows(pool, slots, CPU)
    assert rows is not None
    return rows


def parts(pool: LoraPool, slots: list[int]) -> list[LoraPart]:
    return [part for part in parted(pool, slots).parts if isinstance(part, LoraPart)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=6))
def test_any_mix_of_rows_equals_the_plain_loop(runs: list[tuple[int, int]]) -> None:
    check(
        pool_of(PAGES), list(itertools.chain(*([slot] * count for slot, count in runs))), group_rows
    )


@pytest.mark.parametrize("slot", PAGES)
def test_one_adapter_for_all_rows(slot: int) -> None:
    check(pool_of(PAGES), [slot] * 7, group_rows)


def test_pages_far_apart_and_close_together_give_the_same() -> None:
    for pages in ({1: (0,), 2: (23,)}, {1: (4,), 2: (5,)}, {1: (4,), 2: (7,)}):
        check(pool_of(pages), [1, 2, 0, 2, 1], group_rows)


def test_an_adapter_is_left_out_of_groups_it_does_not_touch() -> None:
    pool = pool_of({1: (0,), 2: (1,)})
    pool.bind(1, ResidentAdapter((0,), 16, frozenset({(None, "lm_head")})))
    for b_PRo in pool.slabs[KEY].b_PRo:
        b_PRo[0].zero_()  # as the slot pool leaves it
    check(pool, [1, 2, 1, 0], group_rows)
    out = torch.ones(3, 18)
    parted(pool, [1, 1, 1]).add(pool.slabs[KEY], torch.ones(3, 12), out)
    assert torch.equal(out, torch.ones(3, 18))


@pytest.mark.parametrize("fill", ["nan", "inf"])
def test_broken_weights_of_one_adapter_stay_in_its_own_rows(fill: str) -> None:
    pool = pool_of({1: (0,), 2: (1,)})
    pool.slabs[KEY].a_PGRI[0].fill_(float(fill))
    for slots in ([1, 1, 0, 0, 0, *[2] * 20], [1, 1, 0, 2, 2, 2], [2, 1, 2, 1], [1, 1, 2, 2]):
        out = torch.zeros(len(slots), 18)
        parted(pool, slots).add(pool.slabs[KEY], torch.ones(len(slots), 12), out)
        mine = torch.tensor(slots) == 1
        assert not out[mine].isfinite().any()
        assert out[~mine].isfinite().all()


def test_a_broken_row_stays_alone() -> None:
    pool = pool_of(PAGES)
    x, out = torch.ones(6, 12), torch.zeros(6, 18)
    x[0] = float("nan")  # also what empty places take
    parted(pool, [1, 4, 4, 5, 4, 2]).add(pool.slabs[KEY], x, out)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def test_few_and_many_rows_are_not_padded_to_one_another() -> None:
    pool = pool_of({slot: (slot - 1,) for slot in range(1, 21)})
    slots = [1] * 15 + [2] * 5 + list(range(3, 20))
    assert sorted(part.num_adapters for part in parts(pool, slots)) == [2, 17]
    check(pool, slots, group_rows)


def test_rows_in_the_order_of_their_pages_are_read_in_place() -> None:
    (part, _) = parts(pool_of(PAGES), [0, 1, 1, 1, 2, 2, 0, 0])
    assert isinstance(part.rows, slice)
    (part,) = parts(pool_of({1: (3,), 2: (4,)}), [0, 1, 1, 2, 2])
    assert (part.rows, part.pages) == (slice(1, 5), slice(3, 5))


def test_what_is_remembered_of_a_window_follows_its_pages() -> None:
    pool = pool_of({1: (3,), 2: (4,)})
    for fill in (1.0, 2.0):
        for slab in pool.slabs.values():
            slab.a_PGRI[3:5].normal_().mul_(fill)
            for b_PRo in slab.b_PRo:
                b_PRo[3:5].normal_()
        check(pool, [0, 1, 1, 2, 2], group_rows)


def test_windows_are_remembered_in_bounded_number() -> None:
    pool = pool_of({}, num_pages=MAX_WINDOWS + 2)
    slab = pool.slabs[KEY]
    for page in range(MAX_WINDOWS + 1):
        first = slab.factors(slice(page, page + 1), 1)
        assert slab.factors(slice(page, page + 1), 1) is first
        assert first.a_KIC.data_ptr() == slab.a_PGRI[page].data_ptr()
    assert slab.factors(slice(0, 1), 1).a_KIC.data_ptr() == slab.a_PGRI.data_ptr()


def test_no_adapted_row_is_no_work() -> None:
    assert group_rows(pool_of(PAGES), [0, 0, 0], CPU) is None


def test_every_row_with_an_adapter_belongs_to_its_slot_in_order() -> None:
    assert rows_by_slot([0, 3, 1, 3, 0, 1, 3]) == {3: [1, 3, 6], 1: [2, 5]}
    assert rows_by_slot([0, 0]) == {}


def test_pages_follow_the_rank() -> None:
    assert [pages_for(rank) for rank in (1, 15, 16, 17, 32, 33, 64)] == [1, 1, 1, 2, 2, 3, 4]
