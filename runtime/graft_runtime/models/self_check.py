"""Compares a served model with its own forward pass, before it serves anybody.

Two requests of random tokens run in chunks and mixed batches over scattered blocks, as traffic
will. State that the cache does not hold, positions that are not ours, windows or masks that were
not told: all of that shows.

Shape legend: N tokens of one request, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.layers.batch import ForwardBatch

LENGTHS = (41, 26)
CUTS = ((0, 19, 20, 41), (0, 5, 6, 26))
"""Where the chunks of both requests end, if they are that long: long ones, and single tokens."""
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Root mean square error of a token's logits, in units of all logits' standard deviation. Chunks
round otherwise than a whole; what is wrong is off by 1."""


class Forward(Protocol):
    """A model over packed batches."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Return float32 logits ``[S, V]`` of the wanted rows."""


@dataclass
class _Request:
    tokens: list[int]
    blocks: list[int]
    cuts: list[int]
    logits: list[Tensor] = field(default_factory=list)


def sample_prompts(vocab_size: int, kv: KvLayout, max_positions: int) -> list[list[int]]:
    """Draw two requests that fit the cache and the model."""
    room = min(kv.num_blocks // 2 * kv.block_size, max_positions)
    generator = torch.Generator().manual_seed(17)
    return [
        torch.randint(vocab_size, (min(length, room),), generator=generator).tolist()
        for length in LENGTHS
    ]


def worst_error(
    model: Forward,
    prompts: Sequence[list[int]],
    own: Sequence[Tensor],
    kv: KvLayout,
    device: torch.device,
) -> float:
    """Run the requests in chunks; return the worst token's error in units of `ALLOWED`.

    Args:
        model: What is to serve.
        prompts: Two requests, from `sample_prompts`.
        own: Each request's logits ``[N, V]`` from the model's own forward pass, of any float dtype.
        kv: The cache, which nobody uses yet.
        device: Where the model's tensors lie.
    """
    requests = _lay_out(prompts, kv)
    steps = max(len(request.cuts) for request in requests) - 1
    with torch.inference_mode():
        for step in range(steps):
            work = [
                (request, request.cuts[step], request.cuts[step + 1])
                for request in requests
                if step + 1 < len(request.cuts)
            ]
            logits = model.forward(_batch(work, kv.block_size, device))
            parts = torch.split(logits, [end - start for _, start, end in work])
            for (request, _, _), part in zip(work, parts, strict=True):
                request.logits.append(part)
    spread = max(float(torch.cat([part.float().flatten() for part in own]).std()), 1e-6)
    errors = [
        (torch.cat(request.logits) - expected_NV.float()).pow(2).mean(-1).sqrt().max()
        for request, expected_NV in zip(requests, own, strict=True)
    ]
    return max(float(error) for error in errors) / spread


def _lay_out(prompts: Sequence[list[int]], kv: KvLayout) -> list[_Request]:
    """Give the requests every other block, so that no table is one run."""
    requests = []
    for number, (tokens, cuts) in enumerate(zip(prompts, CUTS, strict=True)):
        count = -(-len(tokens) // kv.block_size)
        blocks = list(range(number, kv.num_blocks, 2))[:count]
        ends = [cut for cut in cuts if cut < len(tokens)]
        requests.append(_Request(tokens, blocks, [*ends, len(tokens)]))
    return requests


def _batch(
    work: Sequence[tuple[_Request, int, int]], block_size: int, device: torch.device
) -> ForwardBatch:
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for request, start, end in work:
        tokens += request.tokens[start:end]
        positions += range(start, end)
        slots += [
            request.blocks[at // block_size] * block_size + at % block_size
            for at in range(start, end)
        ]
        starts.append(len(tokens))
    return ForwardBatch(
        token_ids_T=torch.tensor(tokens, device=device),
        positions_T=torch.tensor(positions, device=device),
        slot_mapping_T=torch.tensor(slots, device=device),
        query_starts=starts,
        seq_lens=[end for _, _, end in work],
        block_tables=[request.blocks for request, _, _ in work],
        adapter_slots=[0] * len(work),
        rope_variants=[0] * len(work),
        logits_rows_S=torch.arange(len(tokens), device=device),
    )
