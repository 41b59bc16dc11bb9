"""A step as flat arrays: everything a runner needs and nothing that refers to a request.

Because it is plain numbers it can be sent to tensor-parallel ranks as it is.

A step is launched before the tokens of the one before it are known. What it takes from there is
marked as carried: the runner fills it in where the tokens are. How its own tokens are chosen comes
later, in a `SamplePlan`, when everything before it is known.

Shape legend: T tokens, C carried tokens, R rows (requests), D those of `Decodes`, L rows that reach
their last token, S rows that get a new token (L without those that ended meanwhile), P tokens of
prompts that are scored, E rows whose hidden states are pooled, H hidden size, K likeliest tokens, N
block ids of all rows (or, in what the sampler brings, tokens that all rows name).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import numpy as np

from graft_runtime.engine.batch import Batch, Decodes, Row, column
from graft_runtime.engine.request import Request
from graft_runtime.engine.sampling_plan import SamplingPlanner
from graft_runtime.sampling.batch import FloatArray, IntArray, SamplingBatch

_known_ids = attrgetter("block_ids")
_tokens_of = attrgetter("tokens")
_sampled_row = attrgetter("sampled_row")
_rope_variant = attrgetter("rope_variant")
_NOTHING: Final[IntArray] = np.zeros(0, dtype=np.int64)


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
    named_N: FloatArray | None = None
    """Log probabilities of the tokens that rows name, in the order of their `SamplingBatch`."""

    @property
    def is_plain(self) -> bool:
        """Whether it brings nothing but tokens."""
        extras = (self.logprobs_S, self.top, self.prompt, self.pooled_EH, self.named_N)
        return all(extra is None for extra in extras)


def build_plan(batch: Batch, block_size: int) -> StepPlan:
    """Flatten a scheduler's rows. Reads requests, and notes in them what it may use again."""
    if not batch.others:
        return _plan_of_decodes(batch.decodes, block_size)
    return _plan_of_any(batch, block_size)


def _plan_of_decodes(decodes: Decodes, block_size: int) -> StepPlan:
    """Return what `_plan_of_any` would; most steps are of this kind, and much of it is known."""
    block_starts, block_ids_N = _block_tables(decodes.requests, decodes.tables)
    positions_T = decodes.starts_D
    block_R, offset_R = np.divmod(positions_T, block_size)
    token_ids_T, carried_C, carried_from_C = _tokens(decodes, ())
    starts = np.arange(len(decodes) + 1)
    return StepPlan(
        token_ids_T=token_ids_T,
        carried_C=carried_C,
        carried_from_C=carried_from_C,
        positions_T=positions_T,
        slot_mapping_T=block_ids_N[block_starts[:-1] + block_R] * block_size + offset_R,
        query_starts=starts,
        seq_lens_R=positions_T + 1,
        block_starts=block_starts,
        block_ids_N=block_ids_N,
        adapter_slots_R=decodes.slots_D,
        rope_variants_R=column(map(_rope_variant, decodes.requests), len(decodes)),
        logits_rows_L=starts[:-1],
        prompt_rows_P=_NOTHING,
        prompt_targets_P=_NOTHING,
        num_prompt_top=0,
        pooled_E=[],
    )


def _plan_of_any(batch: Batch, block_size: int) -> StepPlan:
    decodes, others = batch.decodes, batch.others
    num_decodes = len(decodes)
    counts = _joined(np.ones(num_decodes, dtype=np.int64), [row.num_tokens for row in others])
    computed = _joined(decodes.starts_D, [row.start for row in others])
    query_starts = _starts(counts)
    requests = [*decodes.requests, *(row.request for row in others)]
    tables = [*decodes.tables, *(row.table for row in others)]
    block_starts, block_ids_N = _block_tables(requests, tables)
    positions_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - computed, counts)
    block_index_T = np.repeat(block_starts[:-1], counts) + positions_T // block_size
    sampled = [at for at, row in enumerate(others, num_decodes) if row.samples]
    # Few steps have any of these, and then few rows of them.
    odd = [(at, row) for at, row in enumerate(others, num_decodes) if row.scored or row.pooled]
    prompt_rows_P, prompt_targets_P = _prompt_scores(odd, query_starts)
    token_ids_T, carried, carried_from = _tokens(decodes, others)
    return StepPlan(
        token_ids_T=token_ids_T,
        carried_C=query_starts[1:][carried] - 1,
        carried_from_C=carried_from,
        positions_T=positions_T,
        slot_mapping_T=block_ids_N[block_index_T] * block_size + positions_T % block_size,
        query_starts=query_starts,
        seq_lens_R=computed + counts,
        block_starts=block_starts,
        block_ids_N=block_ids_N,
        adapter_slots_R=_joined(decodes.slots_D, [row.slot for row in others]),
        rope_variants_R=column(map(_rope_variant, requests), len(requests)),
        logits_rows_L=query_starts[1:][_joined(np.arange(num_decodes), sampled)] - 1,
        prompt_rows_P=prompt_rows_P,
        prompt_targets_P=prompt_targets_P,
        num_prompt_top=max(
            (row.request.sampling.prompt_logprobs or 0 for _, row in odd if row.scored), default=0
        ),
        pooled_E=[_bounds(row, int(query_starts[at])) for at, row in odd if row.pooled],
    )


def build_sample_plan(batch: Batch, planner: SamplingPlanner) -> SamplePlan:
    """Flatten what a launched step's rows ask of their new tokens, and number those.

    All tokens of earlier steps must be known by now: penalties and the like depend on them.
    """
    ending = batch.ending
    requests = [request for request in ending if not request.has_ended]
    for place, request in enumerate(requests):
        request.sampled_row = place
    if len(requests) == len(ending):
        rows_S = np.arange(len(ending))
    else:
        rows_S = np.flatnonzero([not request.has_ended for request in ending])
    return SamplePlan(rows_S, planner.build(requests))


def _tokens(decodes: Decodes, others: Sequence[Row]) -> tuple[IntArray, IntArray, IntArray]:
    """Return the tokens, the rows whose last one is not known yet [C], and where that is [C]."""
    requests, starts_D = decodes.requests, decodes.starts_D
    is_carried_D = column(map(len, map(_tokens_of, requests)), len(requests)) <= starts_D
    carried_D = np.flatnonzero(is_carried_D)
    from_D = column(map(_sampled_row, requests), len(requests))[carried_D]
    tokens_D = np.zeros(len(requests), dtype=np.int64)
    if len(carried_D) < len(requests):
        for at in np.flatnonzero(~is_carried_D).tolist():
            tokens_D[at] = requests[at].tokens[starts_D[at]]
    tokens: list[int] = []
    carried: list[int] = []
    for at, row in enumerate(others, len(requests)):
        known, end = row.request.tokens, row.start + row.num_tokens
        if row.start < len(known):
            tokens += known[row.start : end]
        if end > len(known):
            tokens.append(0)
            carried.append(at)
    froms = [others[at - len(requests)].request.sampled_row for at in carried]
    return _joined(tokens_D, tokens), _joined(carried_D, carried), _joined(from_D, froms)


def _block_tables(requests: list[Request], tables: list[list[int]]) -> tuple[IntArray, IntArray]:
    """Return where each row's blocks begin [R + 1], and all rows' blocks [N]."""
    parts = list(map(_known_ids, requests))
    for row in [row for row, part in enumerate(parts) if part is None]:
        parts[row] = _block_ids(requests[row], tables[row])
    return _starts(column(map(len, parts), len(parts))), np.concatenate(parts)


def _block_ids(request: Request, table: list[int]) -> IntArray:
    """Flatten a row's table, and note that.

    For blocks that were given back its first other one stands: nothing sees what is in their place,
    but a kernel may read it, and then it must be finite.
    """
    ids = np.array(table, dtype=np.int64)
    num_released = request.num_released
    if num_released:
        ids[:num_released] = ids[num_released]
    request.block_ids = ids
    return ids


def _bounds(row: Row, first: int) -> tuple[int, int]:
    """Return where a row's pooled tokens begin and end in T, in which it begins at ``first``."""
    offset = first - row.start
    return row.pooled.start + offset, row.pooled.stop + offset


def _prompt_scores(
    odd: Sequence[tuple[int, Row]], query_starts: IntArray
) -> tuple[IntArray, IntArray]:
    """Return which logits score which tokens of prompts; only the odd rows have any."""
    indices: list[int] = []
    targets: list[int] = []
    for at, row in odd:
        scored = row.scored
        if scored:
            offset = int(query_starts[at]) - row.start - 1
            indices += range(scored.start + offset, scored.stop + offset)
            targets += row.request.tokens[scored.start : scored.stop]
    return np.array(indices, dtype=np.int64), np.array(targets, dtype=np.int64)


def _joined(decoded_D: IntArray, others: Sequence[int]) -> IntArray:
    """Return a column of all rows; most steps have no others."""
    return np.concatenate((decoded_D, np.array(others, dtype=np.int64))) if others else decoded_D


def _starts(counts: IntArray) -> IntArray:
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
