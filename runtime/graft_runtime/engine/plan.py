"""A step as flat arrays: everything a runner needs and nothing that refers to a request.

Because it is plain numbers it can be sent to tensor-parallel ranks as it is.

A step is launched before the tokens of the one before it are known. What it takes from there is
marked as carried: the runner fills it in where the tokens are. How its own tokens are chosen comes
later, in a `SamplePlan`, when everything before it is known.

Shape legend: T tokens, C carried tokens, R rows (requests), D those of `Decodes`, L rows that reach
their last token, S rows that get a new token (L without those that ended meanwhile), P tokens of
prompts that are scored, E rows whose hidden states are pooled, H hidden size, K likeliest tokens, N
tokens that all rows name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Final

import numpy as np

from graft_runtime.engine.batch import Batch, Decodes, Row, column, joined
from graft_runtime.engine.kv_cache import readable
from graft_runtime.engine.sampling_plan import SamplingPlanner
from graft_runtime.sampling.batch import FloatArray, IntArray, SamplingBatch

_sampled_row = attrgetter("sampled_row")
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
    block_tables: list[list[int]]
    """[R] each row's blocks, in order. Nobody changes them any more."""
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
    """Flatten a scheduler's rows. Changes nothing in their requests."""
    if not batch.others:
        return _plan_of_decodes(batch.decodes, block_size)
    return _plan_of_any(batch, block_size)


def _plan_of_decodes(decodes: Decodes, block_size: int) -> StepPlan:
    """Return what `_plan_of_any` would; most steps are of this kind, and much of it is known."""
    positions_T = decodes.starts_D
    token_ids_T, carried_C, carried_from_C = _tokens(decodes, ())
    starts = np.arange(len(decodes) + 1)
    return StepPlan(
        token_ids_T=token_ids_T,
        carried_C=carried_C,
        carried_from_C=carried_from_C,
        positions_T=positions_T,
        slot_mapping_T=_slots_of_decodes(decodes, block_size),
        query_starts=starts,
        seq_lens_R=positions_T + 1,
        block_tables=decodes.tables,
        adapter_slots_R=decodes.members.slots_D,
        rope_variants_R=decodes.members.rope_variants_D,
        logits_rows_L=starts[:-1],
        prompt_rows_P=_NOTHING,
        prompt_targets_P=_NOTHING,
        num_prompt_top=0,
        pooled_E=[],
    )


def _plan_of_any(batch: Batch, block_size: int) -> StepPlan:
    decodes, others = batch.decodes, batch.others
    num_decodes = len(decodes)
    counts = joined(np.ones(num_decodes, dtype=np.int64), [row.num_tokens for row in others])
    computed = joined(decodes.starts_D, [row.start for row in others])
    query_starts = _starts(counts)
    tables = [readable(row.table, row.request.num_released) for row in others]
    positions_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - computed, counts)
    slots_D = _slots_of_decodes(decodes, block_size)
    slots_of_others = _slots(tables, counts[num_decodes:], positions_T[num_decodes:], block_size)
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
        slot_mapping_T=np.concatenate((slots_D, slots_of_others)),
        query_starts=query_starts,
        seq_lens_R=computed + counts,
        block_tables=decodes.tables + tables,
        adapter_slots_R=joined(decodes.members.slots_D, [row.slot for row in others]),
        rope_variants_R=joined(
            decodes.members.rope_variants_D, [row.request.rope_variant for row in others]
        ),
        logits_rows_L=query_starts[1:][joined(np.arange(num_decodes), sampled)] - 1,
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
    ending, lengths_S = batch.ending, batch.end_lengths
    requests, rows_S = ending, np.arange(len(ending))
    if batch.ended:
        rows_S = np.flatnonzero([not request.has_ended for request in ending])
        requests, lengths_S = [ending[row] for row in rows_S.tolist()], lengths_S[rows_S]
    return SamplePlan(rows_S, planner.build(requests, lengths_S))


def _tokens(decodes: Decodes, others: Sequence[Row]) -> tuple[IntArray, IntArray, IntArray]:
    """Return the tokens, the rows whose last one is not known yet [C], and where that is [C]."""
    tokens_D, carried_D, from_D = _tokens_of_decodes(decodes)
    tokens: list[int] = []
    carried: list[int] = []
    for at, row in enumerate(others, len(decodes)):
        known, end = row.request.tokens, row.start + row.num_tokens
        if row.start < len(known):
            tokens += known[row.start : end]
        if end > len(known):
            tokens.append(0)
            carried.append(at)
    froms = [others[at - len(decodes)].request.sampled_row for at in carried]
    return joined(tokens_D, tokens), joined(carried_D, carried), joined(from_D, froms)


def _tokens_of_decodes(decodes: Decodes) -> tuple[IntArray, IntArray, IntArray]:
    """Return what `_tokens` does."""
    count = len(decodes)
    tokens_D = np.zeros(count, dtype=np.int64)
    if decodes.are_carried:
        rows_D = np.arange(count)
        return tokens_D, rows_D, rows_D
    histories, starts_D = decodes.members.histories, decodes.starts_D
    is_carried_D = column(map(len, histories), count) <= starts_D
    for at in np.flatnonzero(~is_carried_D).tolist():
        tokens_D[at] = histories[at][starts_D[at]]
    carried_D = np.flatnonzero(is_carried_D)
    return tokens_D, carried_D, column(map(_sampled_row, decodes.requests), count)[carried_D]


def _slots_of_decodes(decodes: Decodes, block_size: int) -> IntArray:
    """Return where the key and value of each row's only token go."""
    slots_D: IntArray = decodes.blocks_D * block_size + decodes.starts_D % block_size
    return slots_D


def _slots(
    tables: list[list[int]], counts_R: IntArray, positions_T: IntArray, block_size: int
) -> IntArray:
    """Return where the key and value of each token go, of rows of so many tokens."""
    starts = _starts(column(map(len, tables), len(tables)))
    blocks = column(chain.from_iterable(tables), int(starts[-1]))
    at_T = np.repeat(starts[:-1], counts_R) + positions_T // block_size
    slots_T: IntArray = blocks[at_T] * block_size + positions_T % block_size
    return slots_T


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


def _starts(counts: IntArray) -> IntArray:
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
