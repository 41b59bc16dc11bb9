"""Batches of rows with adapters, and a plain loop that every backend must agree with.

Shape legend: R = PAGE_RANK, o features out of one slice.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from graft_runtime.layers.lora.base import LoraPool, LoraRows, LoraSlab, ResidentAdapter
from graft_runtime.layers.lora.choose import GroupRows
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice

CPU = torch.device("cpu")
QKV = LoraGroup("qkv", 12, (LoraSlice("q", 10), LoraSlice("k", 4), LoraSlice("v", 4)))
KEY = (0, "qkv")
PAGES = {1: (0,), 2: (1, 2), 3: (9, 4, 23), 4: (5,), 5: (20,)}


class OneGroup:
    """The smallest model that has an adaptable layer."""

    num_layers = 1
    lm_head_group = LoraGroup("lm_head", 12, (LoraSlice("lm_head", 6),))

    def __init__(self, group: LoraGroup = QKV) -> None:
        self.lora_groups = (group,)


def pool_of(
    pages_of: Mapping[int, tuple[int, ...]],
    num_pages: int = 24,
    *,
    group: LoraGroup = QKV,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> LoraPool:
    """Fill every page, owned or not, so that reading a wrong one shows."""
    pool = LoraPool(OneGroup(group), num_pages=num_pages, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(1)
    for slab in pool.slabs.values():
        for target in (slab.a_PGRI, *slab.b_PRo):
            target.copy_(torch.randn(target.shape, generator=generator))
    for slot, pages in pages_of.items():
        pool.bind(slot, ResidentAdapter(pages, 16 * len(pages), frozenset(pool.slabs)))
    return pool


def plain(
    pool: LoraPool, slab: LoraSlab, slots: list[int], x: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Add each row's adapter, row by row, slice by slice, page by page, in float64.

    Returns:
        The sums, and the sums of the sizes of what was added.
    """
    result, sizes = out.double(), out.double().abs()
    for row, slot in enumerate(slots):
        if not slot or slab.key not in pool.adapter(slot).touched:
            continue
        for page in pool.adapter(slot).pages:
            starts = zip(slab.group.slice_starts, slab.group.slices, strict=True)
            for index, (start, part) in enumerate(starts):
                columns = slice(start, start + part.out_features)
                h = slab.a_PGRI[page, index].double() @ x[row].double()
                b_Ro = slab.b_PRo[index][page].double()
                result[row, columns] += h @ b_Ro
                sizes[row, columns] += h.abs() @ b_Ro.abs()
    return result, sizes


def check(pool: LoraPool, slots: list[int], group_rows: GroupRows) -> None:
    """Compare a backend with the loop; rows without an adapter must not change by a bit."""
    slab = next(iter(pool.slabs.values()))
    dtype, device = slab.a_PGRI.dtype, slab.a_PGRI.device
    # Both begin inside wider tensors, as they may in a model.
    width, wider = slab.group.in_features, slab.group.out_features
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(slots), width + 3, generator=generator)
    out = torch.randn(len(slots), wider + 5, generator=generator)
    x, out = x.to(device, dtype)[:, :width], out.to(device, dtype)[:, :wider]
    (expected, sizes), before = plain(pool, slab, slots, x, out), out.clone()
    add(group_rows(pool, slots, device), slab, x, out)
    # The inner product and the sum are rounded once each: bfloat16 errs by 2**-8 at most. float32
    # errs by 2**-24, many times: what is added up is up to a thousand numbers.
    bound = 2**-20 if dtype == torch.float32 else 2**-7
    assert ((out.double() - expected).abs() <= bound * sizes).all()
    base = [row for row, slot in enumerate(slots) if slot == 0]
    assert torch.equal(out[base], before[base])


def add(rows: LoraRows | None, slab: LoraSlab, x: Tensor, out: Tensor) -> None:
    """Add rows' adapters, where any row has one."""
    if rows is not None:
        rows.add(slab, x, out)
