"""What the Triton kernels are held to, on a device or interpreted; both tests run the same."""

import torch

from graft_runtime.layers.lora.choose import GroupRows
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice
from tests.support.lora_cases import PAGES, QKV, check, pool_of

ODD = LoraGroup("odd", 300, (LoraSlice("a", 130), LoraSlice("b", 5)))
"""No width is a multiple of a block; the input takes several."""
DEEP = LoraGroup("deep", 1200, (LoraSlice("o", 32),))
"""Deep enough that the input is divided."""

MIXES = {
    "one row": [1],
    "no adapter between": [1, 0, 2, 0, 3],
    "unsorted": [2, 1, 2, 0, 5, 1, 3],
    "many rows of one": [4] * 35 + [0, 1],
    "all": [slot for slot in PAGES for _ in range(slot)],
}
DTYPES = (torch.float32, torch.bfloat16)


def check_mix(name: str, dtype: torch.dtype, device: torch.device, group_rows: GroupRows) -> None:
    """Compare one mix of rows with the plain loop, on the small group and on the odd one."""
    for group in (QKV, ODD):
        check(pool_of(PAGES, dtype=dtype, device=device, group=group), MIXES[name], group_rows)


def check_deep(dtype: torch.dtype, device: torch.device, group_rows: GroupRows) -> None:
    """Compare where the input is divided among programs."""
    pool = pool_of(PAGES, dtype=dtype, device=device, group=DEEP)
    check(pool, [1, 3, 3, 0, 2], group_rows)


def check_isolation(device: torch.device, group_rows: GroupRows) -> None:
    """Broken weights and broken rows reach nobody else."""
    pool = pool_of({1: (0,), 2: (1,)}, device=device)
    slab = pool.slabs[0, "qkv"]
    slab.a_PGRI[0].fill_(float("nan"))
    slots = [1, 2, 0, 2, 1]
    x, out = torch.ones(5, 12, device=device), torch.zeros(5, 18, device=device)
    x[3] = float("inf")
    rows = group_rows(pool, slots, device)
    assert rows is not None
    rows.add(slab, x, out)
    assert out.isfinite().all(1).tolist() == [False, True, True, False, False]
    assert torch.equal(out[2], torch.zeros(18, device=device))
