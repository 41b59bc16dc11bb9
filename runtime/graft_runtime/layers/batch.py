"""One step's tokens, packed: what a decoder's forward pass is given.

Knows no request and no scheduler; the engine's runner builds it.

Shape legend: T tokens of all requests, R requests, S rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """T tokens of R requests in a row. Tensors lie on the device, lists on the host."""

    token_ids_T: Tensor
    """int64."""
    positions_T: Tensor
    """int64 position of each token in its own request."""
    slot_mapping_T: Tensor
    """int64 ``block_id * block_size + offset``: where each token's key and value go."""
    query_starts: list[int]
    """R + 1 offsets into T."""
    seq_lens: list[int]
    """R context lengths, this step's tokens included."""
    block_tables: list[list[int]]
    """R lists of physical block ids, in order."""
    adapter_slots: list[int]
    """R device slots of the requests' adapters; 0 is none."""
    rope_variants: list[int]
    """R of what `RopeSpec.variant` says for each request; 0 for most models."""
    logits_rows_S: Tensor
    """int64 indices into T."""
