"""Adds adapters to the outputs of base layers on a GPU, with kernels written in Triton.

A step's rows are sorted by adapter and cut into tiles, each of one adapter. `_shrink` multiplies a
tile with the adapter's A, page by page, as many pages as its rank takes; `_expand` multiplies what
came out with B and adds it to the base output. Sums are kept in float32. Nothing here has been
timed. `graft_runtime.layers.lora.cpu` is the reference; `TRITON_INTERPRET=1` runs the kernels
without a GPU.

Shape legend: T tokens (or rows of logits), n rows with an adapter, t tiles, q pages of the adapter
with most, J parts the input is divided into, G slices of a group, R = PAGE_RANK, I/O features
in/out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from graft_runtime.layers.lora.base import GroupKey, LoraPool, LoraSlab, rows_by_slot
from graft_runtime.layers.lora.layout import PAGE_RANK

TILE_ROWS = 16
"""Rows of a tile: the fewest that tensor cores multiply."""

BLOCK_IN = 128
"""Input features that a program reads at once."""

BLOCK_OUT = 128
"""Output features of one program."""

MIN_PART_BLOCKS = 4
"""Blocks of input that a program sums up before it pays to have another do a part of them."""

WANTED_PROGRAMS = 256
"""Programs that keep a large GPU busy; fewer tiles divide the input until there are as many."""


# The decorator has no annotations of its own (follow_imports is `skip` for Triton).
@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # noqa: PLR0913, PLR0917 - a kernel's arguments are its interface
    x_ptr: Tensor,
    a_ptr: Tensor,
    h_ptr: Tensor,
    rows_ptr: Tensor,
    tiles_ptr: Tensor,
    pages_ptr: Tensor,
    x_stride: int,
    num_rows: int,
    in_features: int,
    part_blocks: int,
    num_pages: tl.constexpr,
    num_slices: tl.constexpr,
    rank: tl.constexpr,
    tile_rows: tl.constexpr,
    block_in: tl.constexpr,
) -> None:
    """Write ``h[J, n, q, G, R]``: a part of the input times one page of A of one slice."""
    tile = tl.program_id(0)
    page_slice = tl.program_id(1)
    part = tl.program_id(2)
    page_index = page_slice // num_slices
    index = page_slice % num_slices
    first = tl.load(tiles_ptr + tile * 4)
    count = tl.load(tiles_ptr + tile * 4 + 1)
    first_page = tl.load(tiles_ptr + tile * 4 + 2)
    own_pages = tl.load(tiles_ptr + tile * 4 + 3)
    if page_index < own_pages:
        page = tl.load(pages_ptr + first_page + page_index)
        place = tl.arange(0, tile_rows)
        is_row = place < count
        row = tl.load(rows_ptr + first + place, mask=is_row, other=0)
        ranks = tl.arange(0, rank)
        columns = tl.arange(0, block_in)
        a_rows = a_ptr + ((page * num_slices + index) * rank + ranks) * in_features
        x_rows = x_ptr + row * x_stride
        acc = tl.full((tile_rows, rank), 0.0, dtype=tl.float32)
        for block in range(part * part_blocks, (part + 1) * part_blocks):
            column = block * block_in + columns
            is_in = column < in_features
            x = tl.load(
                x_rows[:, None] + column[None, :], mask=is_row[:, None] & is_in[None, :], other=0.0
            )
            a = tl.load(a_rows[None, :] + column[:, None], mask=is_in[:, None], other=0.0)
            acc = tl.dot(x, a, acc, input_precision="ieee")
        h_row = ((part * num_rows + first + place) * num_pages + page_index) * num_slices + index
        tl.store(h_ptr + h_row[:, None] * rank + ranks[None, :], acc, mask=is_row[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # noqa: PLR0913, PLR0917 - a kernel's arguments are its interface
    h_ptr: Tensor,
    b_ptr: Tensor,
    out_ptr: Tensor,
    rows_ptr: Tensor,
    tiles_ptr: Tensor,
    pages_ptr: Tensor,
    out_stride: int,
    num_rows: int,
    width: int,
    num_parts: int,
    index: int,
    num_pages: tl.constexpr,
    num_slices: tl.constexpr,
    rank: tl.constexpr,
    tile_rows: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    """Add ``sum of h over parts @ B`` of one slice to the output, which begins at the slice."""
    tile = tl.program_id(0)
    first = tl.load(tiles_ptr + tile * 4)
    count = tl.load(tiles_ptr + tile * 4 + 1)
    first_page = tl.load(tiles_ptr + tile * 4 + 2)
    own_pages = tl.load(tiles_ptr + tile * 4 + 3)
    place = tl.arange(0, tile_rows)
    is_row = place < count
    ranks = tl.arange(0, rank)
    column = tl.program_id(1) * block_out + tl.arange(0, block_out)
    is_out = column < width
    acc = tl.full((tile_rows, block_out), 0.0, dtype=tl.float32)
    for page_index in range(own_pages):
        h = tl.full((tile_rows, rank), 0.0, dtype=tl.float32)
        for part in range(num_parts):
            h_row = part * num_rows + first + place
            h_row = (h_row * num_pages + page_index) * num_slices + index
            h += tl.load(
                h_ptr + h_row[:, None] * rank + ranks[None, :], mask=is_row[:, None], other=0.0
            )
        page = tl.load(pages_ptr + first_page + page_index)
        b_rows = b_ptr + (page * rank + ranks) * width
        b = tl.load(b_rows[:, None] + column[None, :], mask=is_out[None, :], other=0.0)
        acc = tl.dot(h.to(b.dtype), b, acc, input_precision="ieee")
    row = tl.load(rows_ptr + first + place, mask=is_row, other=0)
    out_ptrs = out_ptr + row[:, None] * out_stride + column[None, :]
    mask = is_row[:, None] & is_out[None, :]
    base = tl.load(out_ptrs, mask=mask, other=0.0)
    tl.store(out_ptrs, (base.to(tl.float32) + acc).to(base.dtype), mask=mask)


@dataclass(frozen=True)
class TiledRows:
    """The adapted rows of one product, as the kernels read them. All tensors are int64."""

    rows_n: Tensor
    """Which of the T rows, an adapter's together."""
    tiles_t4: Tensor
    """Of each tile: its first row among n, how many it has, its first page among those of
    ``pages``, how many pages."""
    pages: Tensor
    """Pages of all adapters, one adapter's after another's."""
    most_pages: int
    touched: frozenset[GroupKey]

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add ``scaling * B @ A @ x`` of each row's adapter to the base output, in place."""
        if slab.key not in self.touched:
            return
        num_rows, num_tiles = self.rows_n.shape[0], self.tiles_t4.shape[0]
        num_slices = len(slab.widths)
        num_parts, part_blocks = divide(
            slab.group.in_features, num_tiles * self.most_pages * num_slices
        )
        h_JnqGR = torch.empty(
            (num_parts, num_rows, self.most_pages, num_slices, PAGE_RANK),
            dtype=torch.float32,
            device=x_TI.device,
        )
        where = (self.rows_n, self.tiles_t4, self.pages)
        shape = {"num_pages": self.most_pages, "num_slices": num_slices, "rank": PAGE_RANK}
        _shrink[(num_tiles, self.most_pages * num_slices, num_parts)](
            x_TI,
            slab.a_PGRI,
            h_JnqGR,
            *where,
            x_TI.stride(0),
            num_rows,
            slab.group.in_features,
            part_blocks,
            **shape,
            tile_rows=TILE_ROWS,
            block_in=BLOCK_IN,
        )
        for index, (start, width) in enumerate(slab.columns):
            _expand[(num_tiles, _blocks(width, BLOCK_OUT))](
                h_JnqGR,
                slab.b_PRo[index],
                out_TO[:, start : start + width],
                *where,
                out_TO.stride(0),
                num_rows,
                width,
                num_parts,
                index,
                **shape,
                tile_rows=TILE_ROWS,
                block_out=BLOCK_OUT,
            )


def divide(in_features: int, programs: int) -> tuple[int, int]:
    """Return into how many parts the input is divided, and how many blocks each has."""
    blocks = _blocks(in_features, BLOCK_IN)
    wanted = max(1, min(WANTED_PROGRAMS // programs, blocks // MIN_PART_BLOCKS))
    part_blocks = _blocks(blocks, wanted)
    return _blocks(blocks, part_blocks), part_blocks


def group_rows(pool: LoraPool, slots: Sequence[int], device: torch.device) -> TiledRows | None:
    """Cut rows into tiles, given the slot of each; 0 is no adapter. None when no row has one."""
    rows_of = rows_by_slot(slots)
    if not rows_of:
        return None
    adapters = [pool.adapter(slot) for slot in rows_of]
    tiles: list[tuple[int, int, int, int]] = []
    first, first_page = 0, 0
    for adapter, rows in zip(adapters, rows_of.values(), strict=True):
        for offset in range(0, len(rows), TILE_ROWS):
            count = min(TILE_ROWS, len(rows) - offset)
            tiles.append((first + offset, count, first_page, len(adapter.pages)))
        first += len(rows)
        first_page += len(adapter.pages)
    pages = [page for adapter in adapters for page in adapter.pages]
    return TiledRows(
        torch.tensor([*chain.from_iterable(rows_of.values())], device=device),
        torch.tensor(tiles, device=device),
        torch.tensor(pages, device=device),
        max(len(adapter.pages) for adapter in adapters),
        frozenset[GroupKey]().union(*(adapter.touched for adapter in adapters)),
    )


def _blocks(count: int, size: int) -> int:
    return -(-count // size)
