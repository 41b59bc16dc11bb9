"""The sampling part of a step's plan: requests' parameters and token rules as flat arrays.

Shape legend: S rows whose next token is chosen, B biased tokens of all rows, A allowed tokens of
all rows, Q penalised rows, U those whose tokens are told, E distinct tokens of all of these, G rows
that follow a grammar, F rows whose token is settled, N named tokens of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from graft_runtime.engine.batch import column
from graft_runtime.engine.counts import Counts, count
from graft_runtime.engine.request import Request
from graft_runtime.engine.sampling_columns import Columns, columns_of
from graft_runtime.engine.thoughts import ThoughtWatch
from graft_runtime.engine.token_rules import TokenRules, as_values
from graft_runtime.errors import PluginError
from graft_runtime.ipc.messages import Watermark
from graft_runtime.sampling.batch import (
    DeviceCall,
    Edits,
    ForcedTokens,
    IntArray,
    NamedTokens,
    Penalties,
    SamplingBatch,
    TokenMasks,
    ToldTokens,
    WatermarkedRow,
)
from graft_runtime.sampling.grammar import GrammarState
from graft_runtime.sampling.interface import DeviceLogitsProcessor, HostLogitsProcessor, Row
from graft_runtime.sampling.plugins import BoundProcessor

_record = attrgetter("sampling_record")
_NOTHING: Final[IntArray] = np.zeros(0, dtype=np.int64)
"""Stands for what is filled in step by step."""


@dataclass(frozen=True)
class _Fixed:
    """What stays the same as long as the same requests get a token."""

    requests: list[Request]
    batch: SamplingBatch
    """With the columns that do not change."""
    num_prompt_S: IntArray
    edited: list[tuple[int, Request, TokenRules]]
    followed: list[GrammarState]
    rows_G: IntArray
    limited: list[tuple[int, ThoughtWatch]]
    processed: list[tuple[int, Request]]
    marked: list[tuple[int, Request, Watermark]]


class SamplingPlanner:
    """Flattens the requests that get a token, step by step. What has not changed is kept."""

    def __init__(self) -> None:
        self._fixed: _Fixed | None = None

    def build(self, requests: list[Request], lengths_S: IntArray) -> SamplingBatch:
        """Return how each request's next token is chosen, and number them.

        Changes nothing else in them, but that from now on the device is taken to know the tokens of
        those that are penalised, and to count the new ones: what is returned must reach it and
        succeed, or the requests must be forgotten.

        Args:
            requests: Who gets a token; all earlier ones are known.
            lengths_S: How many tokens they have.
        """
        fixed = self._fixed
        if fixed is None or fixed.requests != requests:  # requests compare by identity
            fixed = self._fixed = _fixed(requests)
            for place, request in enumerate(requests):
                request.sampled_row = place
            penalties = _telling(fixed)
        else:  # nobody has to be told twice as long as the same requests get a token
            penalties = fixed.batch.penalties
        return replace(
            fixed.batch,
            position_S=lengths_S - fixed.num_prompt_S,
            edits=_edits(fixed),
            penalties=penalties,
            masks=_masks(fixed),
            forced=_forced(fixed),
            watermarked=tuple(_watermarked(fixed)),
            device_calls=tuple(_device_calls(fixed)),
        )

    def forget(self, requests: Iterable[Request]) -> None:
        """Take their tokens for unknown to the device: a step of theirs has failed."""
        self._fixed = None  # else those that go on together would not be told
        for _, counts in _counted(enumerate(requests)):
            counts.is_known = False


def build_sampling(requests: Sequence[Request]) -> SamplingBatch:
    """Flatten requests once, for a device that knows none of them; see `SamplingPlanner`."""
    lengths_S = column((len(request.tokens) for request in requests), len(requests))
    planner = SamplingPlanner()
    planner.forget(requests)
    return planner.build(list(requests), lengths_S)


def _fixed(requests: list[Request]) -> _Fixed:
    columns = columns_of(map(_record, requests))
    wants_logprobs = bool(columns["logprobs"].any())
    rows = [(row, one) for row, one in enumerate(requests) if not one.is_free]
    batch = SamplingBatch(
        temperature_S=columns["temperature"],
        top_k_S=columns["top_k"],
        top_p_S=columns["top_p"],
        min_p_S=columns["min_p"],
        typical_p_S=columns["typical_p"],
        seed_S=columns["seed"],
        sample_index_S=columns["sample_index"],
        position_S=_NOTHING,
        wants_logprobs=wants_logprobs,
        num_top_S=columns["top_logprobs"],
        is_processed_S=columns["processed_logprobs"],
        edits=None,
        penalties=_penalties(rows, columns),
        named=_named(requests) if wants_logprobs else None,
    )
    ruled = [(row, one, one.rules) for row, one in rows if one.rules is not None]
    followed = [(row, one.grammar) for row, one in rows if one.grammar is not None]
    return _Fixed(
        requests,
        batch,
        columns["num_prompt"],
        edited=[(row, one, rules) for row, one, rules in ruled if rules.edits],
        followed=[state for _, state in followed],
        rows_G=np.array([row for row, _ in followed], dtype=np.int64),
        limited=[(row, one.thought) for row, one in rows if one.thought is not None],
        processed=[(row, one) for row, one in rows if one.processors],
        marked=[
            (row, one, one.sampling.watermark)
            for row, one in rows
            if one.sampling.watermark is not None
        ],
    )


def _counted(rows: Iterable[tuple[int, Request]]) -> Iterator[tuple[int, Counts]]:
    """Yield where the tokens of the penalised ones are counted, with their rows."""
    for row, request in rows:
        if request.rules is not None and request.rules.counts is not None:
            yield row, request.rules.counts


def _penalties(rows: list[tuple[int, Request]], columns: Columns) -> Penalties | None:
    """Return what penalised rows ask for; None when there are none."""
    counted = list(_counted(rows))
    if not counted:
        return None
    rows_Q = np.array([row for row, _ in counted], dtype=np.int64)
    return Penalties(
        rows_Q=rows_Q,
        slots_Q=column((counts.slot for _, counts in counted), len(counted)),
        prompt_sizes_Q=column((counts.prompt_size for _, counts in counted), len(counted)),
        repetition_Q=columns["repetition_penalty"][rows_Q],
        presence_Q=columns["presence_penalty"][rows_Q],
        frequency_Q=columns["frequency_penalty"][rows_Q],
    )


def _telling(fixed: _Fixed) -> Penalties | None:
    """Return the penalties with all tokens that the device does not know; it does from now on."""
    penalties, requests = fixed.batch.penalties, fixed.requests
    unknown = [(row, one) for row, one in _counted(enumerate(requests)) if not one.is_known]
    if penalties is None or not unknown:
        return penalties
    found = [count(requests[row].tokens, requests[row].num_prompt) for row, _ in unknown]
    for _, counts in unknown:
        counts.is_known = True
    told = ToldTokens(
        slots_U=column((counts.slot for _, counts in unknown), len(unknown)),
        sizes_U=column((len(ids) for ids, _ in found), len(found)),
        ids_E=_joined([ids for ids, _ in found]),
        counts_E=_joined([numbers for _, numbers in found]),
    )
    return replace(penalties, told=told)


def _named(requests: Sequence[Request]) -> NamedTokens | None:
    """Return the tokens that requests want scored; None when nobody names any."""
    named = [(row, one.sampling.logprob_token_ids) for row, one in enumerate(requests)]
    named = [(row, ids) for row, ids in named if ids]
    if not named:
        return None
    ids_N = np.array([id for _, ids in named for id in ids], dtype=np.int64)
    return NamedTokens(_rows([(row, len(ids)) for row, ids in named]), ids_N)


def _forced(fixed: _Fixed) -> ForcedTokens | None:
    """Return the tokens that end thoughts in this step; None when none does."""
    due = [(row, token) for row, one in fixed.limited if (token := one.forced) is not None]
    if not due:
        return None
    rows_F, ids_F = np.array(due, dtype=np.int64).T.copy()
    return ForcedTokens(rows_F, ids_F)


def _device_calls(fixed: _Fixed) -> Iterator[DeviceCall]:
    for index, request in fixed.processed:
        for rank, bound in enumerate(request.processors):
            if isinstance(bound.processor, DeviceLogitsProcessor):
                yield DeviceCall(index, rank, bound.processor, _view(request, bound))


def _view(request: Request, bound: BoundProcessor) -> Row:
    # A copy: it is read in the lane while the request may go on.
    return Row(bound.arguments, tuple(request.tokens), request.num_prompt)


def _host_biases(request: Request) -> Iterator[dict[int, float]]:
    """Yield what host processors want to add; an impossible token is their request's failure."""
    for bound in request.processors:
        if isinstance(bound.processor, HostLogitsProcessor):
            bias = dict(bound.processor.bias(_view(request, bound)))
            if any(token < 0 or math.isnan(value) for token, value in bias.items()):
                message = f"{type(bound.processor).__name__} returned a negative token or a NaN"
                raise PluginError(message)
            if bias:
                yield bias


def _watermarked(fixed: _Fixed) -> Iterator[WatermarkedRow]:
    for row, request, mark in fixed.marked:
        yield WatermarkedRow(row, mark, tuple(request.tokens[-mark.context_width :]))


def _masks(fixed: _Fixed) -> TokenMasks | None:
    """Return which tokens the requests' grammars allow next; None when nobody has one."""
    states = fixed.followed
    return TokenMasks(fixed.rows_G, states[0].vocabulary.fill(states)) if states else None


def _edits(fixed: _Fixed) -> Edits | None:
    """Return what the requests' rules come to in this step; None when nothing."""
    edited = fixed.edited
    hosted = [(row, bias) for row, one in fixed.processed for bias in _host_biases(one)]
    if not edited and not hosted:
        return None
    biases = [(row, rules.bias(one.tokens, one.num_output)) for row, one, rules in edited]
    bias = [(row, *as_values(each)) for row, each in biases + hosted if each]
    allowed = [(row, rules.allowed_ids) for row, _, rules in edited if _limits(rules)]
    return Edits(
        bias_rows_B=_rows([(row, len(ids)) for row, ids, _ in bias]),
        bias_ids_B=_joined([ids for _, ids, _ in bias]),
        bias_B=_joined([values for _, _, values in bias], np.float32),
        allowed_rows_A=_rows([(row, len(ids)) for row, ids in allowed]),
        allowed_ids_A=_joined([ids for _, ids in allowed]),
    )


def _limits(rules: TokenRules) -> bool:
    return rules.sampling.allowed_token_ids is not None


def _rows(lengths: Sequence[tuple[int, int]]) -> IntArray:
    rows = np.array([row for row, _ in lengths], dtype=np.int64)
    return np.repeat(rows, np.array([length for _, length in lengths], dtype=np.int64))


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike = np.int64) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
