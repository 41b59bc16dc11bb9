"""A step as flat arrays: everything a runner needs and nothing that refers to a request.

Because it is plain numbers it can be sent to tensor-parallel ranks as it is.

Shape legend: T tokens, R rows (requests), S rows that get a new token, P tokens of prompts that are
scored, K likeliest tokens, N block ids of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graft_runtime.engine.sampling_plan import build_sampling
from graft_runtime.engine.scheduler import Row
from graft_runtime.sampling.batch import FloatArray, IntArray, SamplingBatch


@dataclass(frozen=True)
class StepPlan:
    """One step. Offsets end with the total, as in CSR matrices."""

    token_ids_T: IntArray
    positions_T: IntArray
    slot_mapping_T: IntArray
    """Where each token's key and value go: ``block * block_size + offset``."""
    query_starts: IntArray
    """[R + 1] where each row's tokens begin in T."""
    seq_lens_R: IntArray
    """Context length of each row, this step's tokens included."""
    block_starts: IntArray
    """[R + 1] where each row's blocks begin in N."""
    block_ids_N: IntArray
    adapter_slots_R: IntArray
    rope_variants_R: IntArray
    """See `RopeSpec.variant`."""
    logits_rows_S: IntArray
    """Indices into T."""
    sampling: SamplingBatch
    """Of the S rows."""
    prompt_rows_P: IntArray
    """Indices into T: whose logits say what the model thought of the token after it."""
    prompt_targets_P: IntArray
    """The tokens after them."""
    num_prompt_top: int
    """How many of the likeliest tokens are wanted with each of them."""


@dataclass(frozen=True)
class TopTokens:
    """The likeliest tokens per row, the best first; -infinity marks one that is out."""

    ids_SK: IntArray
    logprobs_SK: FloatArray


@dataclass(frozen=True)
class PromptScores:
    """What the model thought of prompts' tokens."""

    logprobs_P: FloatArray
    ranks_P: IntArray
    top_ids_PK: IntArray
    top_logprobs_PK: FloatArray


@dataclass(frozen=True)
class StepResult:
    """The sampled tokens, one per row that gets one.

    A negative token says why there is none; see `graft_runtime.sampling.sampler`.
    """

    token_ids_S: IntArray
    logprobs_S: FloatArray | None
    top: TopTokens | None = None
    prompt: PromptScores | None = None


def build_plan(rows: Sequence[Row], block_size: int) -> StepPlan:
    """Flatten a scheduler's rows. Reads requests, changes nothing."""
    counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
    computed = np.array([row.request.num_computed for row in rows], dtype=np.int64)
    query_starts = _starts(counts)
    tables = [row.request.blocks for row in rows]
    block_starts = _starts(np.array([len(table) for table in tables], dtype=np.int64))
    block_ids_N = np.array([block for table in tables for block in table], dtype=np.int64)
    positions_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - computed, counts)
    block_index_T = np.repeat(block_starts[:-1], counts) + positions_T // block_size
    sampled = [index for index, row in enumerate(rows) if row.samples]
    prompt_rows_P, prompt_targets_P = _prompt_scores(rows, query_starts)
    return StepPlan(
        token_ids_T=np.array(
            [token for row in rows for token in _tokens(row)],
            dtype=np.int64,
        ),
        positions_T=positions_T,
        slot_mapping_T=block_ids_N[block_index_T] * block_size + positions_T % block_size,
        query_starts=query_starts,
        seq_lens_R=computed + counts,
        block_starts=block_starts,
        block_ids_N=block_ids_N,
        adapter_slots_R=np.array([row.request.slot for row in rows], dtype=np.int64),
        rope_variants_R=np.array([row.request.rope_variant for row in rows], dtype=np.int64),
        logits_rows_S=query_starts[1:][sampled] - 1,
        sampling=build_sampling([rows[index].request for index in sampled]),
        prompt_rows_P=prompt_rows_P,
        prompt_targets_P=prompt_targets_P,
        num_prompt_top=max((row.request.sampling.prompt_logprobs or 0 for row in rows), default=0),
    )


def _tokens(row: Row) -> list[int]:
    start = row.request.num_computed
    return row.request.tokens[start : start + row.num_tokens]


def _prompt_scores(rows: Sequence[Row], query_starts: IntArray) -> tuple[IntArray, IntArray]:
    """Return which logits score which tokens of prompts."""
    indices: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        scored = row.scored
        if scored:
            offset = int(query_starts[index]) - row.request.num_computed - 1
            indices += range(scored.start + offset, scored.stop + offset)
            targets += row.request.tokens[scored.start : scored.stop]
    return np.array(indices, dtype=np.int64), np.array(targets, dtype=np.int64)


def _starts(counts: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
