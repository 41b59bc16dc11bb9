"""A step as flat arrays: everything a runner needs and nothing that refers to a request.

Because it is plain numbers it can be sent to tensor-parallel ranks as it is.

A step is launched before the tokens of the one before it are known. What it takes from there is
marked as carried: the runner fills it in where the tokens are. How its own tokens are chosen comes
later, in a `SamplePlan`, when everything before it is known.

Shape legend: T tokens, C carried tokens, R rows (requests), L rows that reach their last token, S
rows that get a new token (L without those that ended meanwhile), P tokens of prompts that are
scored, E rows whose hidden states are pooled, H hidden size, K likeliest tokens, N block ids of all
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graft_runtime.engine.batch import Row
from graft_runtime.engine.sampling_plan import SamplingPlanner
from graft_runtime.sampling.batch import FloatArray, IntArray, SamplingBatch


@dataclass(frozen=True)
class StepPlan:
    """One step. Offsets end with the total, as in CSR matrices."""

    token_ids_T: IntArray
    """0 where the token is carried."""
    carried_C: IntArray
    """Indices into T: tokens that the step before this one samples."""
    carried_from_C: IntArray
    """Indices into its S."""
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
    logits_rows_L: IntArray
    """Indices into T."""
    prompt_rows_P: IntArray
    """Indices into T: whose logits say what the model thought of the token after it."""
    prompt_targets_P: IntArray
    """The tokens after them."""
    num_prompt_top: int
    """How many of the likeliest tokens are wanted with each of them."""
    pooled_E: list[tuple[int, int]]
    """Bounds in T: whose hidden states are added up, for each row that wants that."""


@dataclass(frozen=True)
class SamplePlan:
    """Which of a launched step's rows get a token, and how it is chosen."""

    rows_S: IntArray
    """Indices into L."""
    sampling: SamplingBatch


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
    pooled_EH: FloatArray | None = None
    """Sums of hidden states."""

    @property
    def is_plain(self) -> bool:
        """Whether it brings nothing but tokens."""
        extras = (self.logprobs_S, self.top, self.prompt, self.pooled_EH)
        return all(extra is None for extra in extras)


def build_plan(rows: Sequence[Row], block_size: int) -> StepPlan:
    """Flatten a scheduler's rows. Reads requests, and notes in them what it may use again."""
    counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
    computed = np.array([row.start for row in rows], dtype=np.int64)
    query_starts = _starts(counts)
    block_starts = _starts(np.array([len(row.table) for row in rows], dtype=np.int64))
    block_ids_N = np.concatenate([_block_ids(row) for row in rows])
    positions_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - computed, counts)
    block_index_T = np.repeat(block_starts[:-1], counts) + positions_T // block_size
    sampled = [index for index, row in enumerate(rows) if row.samples]
    # Few steps have any of these, and then few rows of them.
    odd = [index for index, row in enumerate(rows) if row.scored or row.pooled]
    prompt_rows_P, prompt_targets_P = _prompt_scores(rows, odd, query_starts)
    token_ids_T, carried = _tokens(rows)
    return StepPlan(
        token_ids_T=token_ids_T,
        carried_C=query_starts[1:][carried] - 1,
        carried_from_C=np.array(
            [rows[index].request.sampled_row for index in carried], dtype=np.int64
        ),
        positions_T=positions_T,
        slot_mapping_T=block_ids_N[block_index_T] * block_size + positions_T % block_size,
        query_starts=query_starts,
        seq_lens_R=computed + counts,
        block_starts=block_starts,
        block_ids_N=block_ids_N,
        adapter_slots_R=np.array([row.slot for row in rows], dtype=np.int64),
        rope_variants_R=np.array([row.request.rope_variant for row in rows], dtype=np.int64),
        logits_rows_L=query_starts[1:][sampled] - 1,
        prompt_rows_P=prompt_rows_P,
        prompt_targets_P=prompt_targets_P,
        num_prompt_top=max(
            (rows[at].request.sampling.prompt_logprobs or 0 for at in odd if rows[at].scored),
            default=0,
        ),
        pooled_E=[_bounds(rows[at], int(query_starts[at])) for at in odd if rows[at].pooled],
    )


def build_sample_plan(rows: Sequence[Row], planner: SamplingPlanner) -> SamplePlan:
    """Flatten what a launched step's rows ask of their new tokens, and number those.

    All tokens of earlier steps must be known by now: penalties and the like depend on them.
    """
    ending = [row.request for row in rows if row.samples]
    rows_S = [index for index, request in enumerate(ending) if not request.has_ended]
    requests = [ending[index] for index in rows_S]
    for place, request in enumerate(requests):
        request.sampled_row = place
    return SamplePlan(np.array(rows_S, dtype=np.int64), planner.build(requests))


def _tokens(rows: Sequence[Row]) -> tuple[IntArray, list[int]]:
    """Return the tokens, and the rows whose last one is not known yet."""
    tokens: list[int] = []
    carried: list[int] = []
    for index, row in enumerate(rows):
        known, end = row.request.tokens, row.start + row.num_tokens
        if row.start < len(known):
            tokens += known[row.start : end]
        if end > len(known):
            tokens.append(0)
            carried.append(index)
    return np.array(tokens, dtype=np.int64), carried


def _block_ids(row: Row) -> IntArray:
    """Return a row's table as an array. Tables only grow, so the last one may still do.

    For blocks that were given back its first other one stands: nothing sees what is in their place,
    but a kernel may read it, and then it must be finite.
    """
    known = row.request.block_ids
    if known is not None and known[0] is row.table and len(known[1]) == len(row.table):
        return known[1]
    ids = np.array(row.table, dtype=np.int64)
    num_released = row.request.num_released
    if num_released:
        ids[:num_released] = ids[num_released]
    row.request.block_ids = row.table, ids
    return ids


def _bounds(row: Row, first: int) -> tuple[int, int]:
    """Return where a row's pooled tokens begin and end in T, in which it begins at ``first``."""
    offset = first - row.start
    return row.pooled.start + offset, row.pooled.stop + offset


def _prompt_scores(
    rows: Sequence[Row], odd: Sequence[int], query_starts: IntArray
) -> tuple[IntArray, IntArray]:
    """Return which logits score which tokens of prompts; only the odd rows have any."""
    indices: list[int] = []
    targets: list[int] = []
    for index in odd:
        row = rows[index]
        scored = row.scored
        if scored:
            offset = int(query_starts[index]) - row.start - 1
            indices += range(scored.start + offset, scored.stop + offset)
            targets += row.request.tokens[scored.start : scored.stop]
    return np.array(indices, dtype=np.int64), np.array(targets, dtype=np.int64)


def _starts(counts: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
