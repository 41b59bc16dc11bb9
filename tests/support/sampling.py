"""Rows to sample: parameters by name, broadcast to all rows; random logits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graft_runtime.sampling.batch import SamplingBatch

VOCAB = 50


def batch(rows: int, **columns: Any) -> SamplingBatch:
    """Return parameters of ``rows`` rows; a column is one value, or one for each row."""

    def column(name: str, default: float, dtype: type) -> Any:
        return np.broadcast_to(np.asarray(columns.get(name, default), dtype=dtype), (rows,)).copy()

    return SamplingBatch(
        temperature_S=column("temperature", 1.0, np.float32),
        top_k_S=column("top_k", 0, np.int32),
        top_p_S=column("top_p", 1.0, np.float32),
        min_p_S=column("min_p", 0.0, np.float32),
        typical_p_S=column("typical_p", 1.0, np.float32),
        seed_S=column("seed", 0, np.uint64),
        sample_index_S=column("sample_index", 0, np.int64),
        position_S=column("position", 0, np.int64),
        wants_logprobs=bool(columns.get("logprobs", False)),
        num_top_S=column("num_top", 0, np.int64),
        is_processed_S=column("processed", 0, np.bool_),
        edits=None,
    )


def random_logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Return logits [rows, vocab] of deviation 2."""
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2
