"""Pack token sequences into forward batches without a scheduler."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.models.decoder import Decoder


@dataclass
class PackedSequence:
    """Tokens that are fed to a decoder piece by piece."""

    tokens: list[int]
    slot: int
    blocks: list[int]
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.computed


class Packer:
    """Hands out blocks and builds batches."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        scatter: random.Random | None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device
        self.block_size = block_size
        self.free = list(range(num_blocks))
        if scatter is not None:
            scatter.shuffle(self.free)

    def sequence(self, tokens: Sequence[int], slot: int = 0) -> PackedSequence:
        count = -(-len(tokens) // self.block_size)
        blocks, self.free = self.free[:count], self.free[count:]
        assert len(blocks) == count, "the test's KV pool is too small"
        return PackedSequence(list(tokens), slot, blocks)

    def batch(
        self, work: Sequence[tuple[PackedSequence, int]], *, rows: Sequence[int] | None = None
    ) -> ForwardBatch:
        """Pack the next tokens of each sequence; ``rows`` None wants the logits of all."""
        tokens: list[int] = []
        positions: list[int] = []
        mapping: list[int] = []
        starts = [0]
        for sequence, count in work:
            span = range(sequence.computed, sequence.computed + count)
            tokens += sequence.tokens[span.start : span.stop]
            positions += span
            mapping += [
                sequence.blocks[at // self.block_size] * self.block_size + at % self.block_size
                for at in span
            ]
            starts.append(len(tokens))
            sequence.computed += count
        return ForwardBatch(
            token_ids_T=torch.tensor(tokens, device=self._device),
            positions_T=torch.tensor(positions, device=self._device),
            slot_mapping_T=torch.tensor(mapping, device=self._device),
            query_starts=starts,
            seq_lens=[sequence.computed for sequence, _ in work],
            block_tables=[sequence.blocks for sequence, _ in work],
            adapter_slots=[sequence.slot for sequence, _ in work],
            rope_variants=[0] * len(work),
            logits_rows_S=torch.tensor(
                list(range(len(tokens)) if rows is None else rows),
                dtype=torch.int64,
                device=self._device,
            ),
        )


def run_in_pieces(
    decoder: Decoder,
    packer: Packer,
    sequences: Sequence[PackedSequence],
    rng: random.Random,
    *,
    max_piece: int = 24,
) -> None:
    """Feed all sequences in random pieces of random company; each collects its rows of logits."""
    waiting = list(sequences)
    while waiting:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        work = [
            (one, min(one.left, rng.choice((1, 1, rng.randint(1, max_piece))))) for one in chosen
        ]
        with torch.inference_mode():
            logits = decoder.forward(packer.batch(work))
        parts = torch.split(logits, [count for _, count in work])
        for (sequence, _), part in zip(work, parts, strict=True):
            sequence.logits.append(part)
        waiting = [one for one in waiting if one.left]


def all_logits(sequence: PackedSequence) -> Tensor:
    """Return the collected rows, one per token."""
    return torch.cat(sequence.logits)
