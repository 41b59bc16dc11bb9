"""The sampling part of a step's plan: requests' parameters and token rules as flat arrays.

Shape legend: S rows whose next token is chosen, B biased tokens of all rows, A allowed tokens of
all rows, Q penalised rows, E changed counts of all of them, G rows that follow a grammar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from graft_runtime.engine.counts import Counts
from graft_runtime.engine.request import Request
from graft_runtime.engine.token_rules import TokenRules, as_values
from graft_runtime.errors import PluginError
from graft_runtime.ipc.messages import Sampling, Watermark
from graft_runtime.sampling.batch import (
    DeviceCall,
    Edits,
    IntArray,
    Penalties,
    SamplingBatch,
    TokenMasks,
    WatermarkedRow,
)
from graft_runtime.sampling.grammar import GrammarState
from graft_runtime.sampling.interface import DeviceLogitsProcessor, HostLogitsProcessor, Row
from graft_runtime.sampling.plugins import BoundProcessor


@dataclass(frozen=True)
class _Fixed:
    """What stays the same as long as the same requests get a token."""

    requests: list[Request]
    batch: SamplingBatch
    """With the columns that do not change."""
    ruled: list[tuple[int, Request, TokenRules]]
    counted: list[tuple[int, Sampling, Counts]]
    followed: list[tuple[int, GrammarState]]
    processed: list[tuple[int, Request]]
    marked: list[tuple[int, Request, Watermark]]


class SamplingPlanner:
    """Flattens the requests that get a token, step by step. What has not changed is kept."""

    def __init__(self) -> None:
        self._fixed: _Fixed | None = None

    def build(self, requests: list[Request]) -> SamplingBatch:
        """Return how each request's next token is chosen.

        Changes nothing in them, but that new counts of their tokens are taken for sent: what is
        returned must reach the device, or the requests must `forget_sent`.
        """
        fixed = self._fixed
        if fixed is None or fixed.requests != requests:  # requests compare by identity
            fixed = self._fixed = _fixed(requests)
        return replace(
            fixed.batch,
            # `num_output`, written out: this runs for every row of every step.
            position_S=np.array([len(one.tokens) - one.num_prompt for one in requests], np.int64),
            edits=_edits(fixed),
            penalties=_penalties(fixed),
            masks=_masks(fixed),
            watermarked=tuple(_watermarked(fixed)),
            device_calls=tuple(_device_calls(fixed)),
        )


def build_sampling(requests: Sequence[Request]) -> SamplingBatch:
    """Flatten requests once; see `SamplingPlanner.build`."""
    return SamplingPlanner().build(list(requests))


def _fixed(requests: list[Request]) -> _Fixed:
    sampling = [request.sampling for request in requests]

    def column(name: str, dtype: npt.DTypeLike) -> Any:
        return np.array(list(map(attrgetter(name), sampling)), dtype=dtype)

    batch = SamplingBatch(
        temperature_S=column("temperature", np.float32),
        top_k_S=column("top_k", np.int32),
        top_p_S=column("top_p", np.float32),
        min_p_S=column("min_p", np.float32),
        typical_p_S=column("typical_p", np.float32),
        seed_S=column("seed", np.uint64),
        sample_index_S=column("sample_index", np.int64),
        position_S=np.zeros(len(requests), dtype=np.int64),
        wants_logprobs=any(map(attrgetter("logprobs"), sampling)),
        num_top_S=column("top_logprobs", np.int64),
        is_processed_S=column("processed_logprobs", np.bool_),
        edits=None,
    )
    rows = list(enumerate(requests))
    ruled = [(row, one, one.rules) for row, one in rows if one.rules is not None]
    return _Fixed(
        requests,
        batch,
        ruled,
        counted=[
            (row, one.sampling, rules.counts)
            for row, one, rules in ruled
            if rules.counts is not None
        ],
        followed=[(row, one.grammar) for row, one in rows if one.grammar is not None],
        processed=[(row, one) for row, one in rows if one.processors],
        marked=[
            (row, one, one.sampling.watermark)
            for row, one in rows
            if one.sampling.watermark is not None
        ],
    )


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
    if not fixed.followed:
        return None
    states = [state for _, state in fixed.followed]
    rows_G = np.array([row for row, _ in fixed.followed], dtype=np.int64)
    return TokenMasks(rows_G, states[0].vocabulary.fill(states))


def _edits(fixed: _Fixed) -> Edits | None:
    """Return what the requests' rules come to in this step; None when nothing."""
    ruled = fixed.ruled
    hosted = [(row, bias) for row, one in fixed.processed for bias in _host_biases(one)]
    if not ruled and not hosted:
        return None
    biases = [(row, rules.bias(one.tokens, one.num_output)) for row, one, rules in ruled]
    bias = [(row, *as_values(each)) for row, each in biases + hosted if each]
    allowed = [(row, rules.allowed_ids) for row, _, rules in ruled if _limits(rules)]
    return Edits(
        bias_rows_B=_rows([(row, len(ids)) for row, ids, _ in bias]),
        bias_ids_B=_joined([ids for _, ids, _ in bias]),
        bias_B=_joined([values for _, _, values in bias], np.float32),
        allowed_rows_A=_rows([(row, len(ids)) for row, ids in allowed]),
        allowed_ids_A=_joined([ids for _, ids in allowed]),
    )


def _penalties(fixed: _Fixed) -> Penalties | None:
    """Return the penalised rows with what is new of their tokens; None when there are none."""
    counted = fixed.counted
    if not counted:
        return None
    slots = [counts.slot for _, _, counts in counted]
    news = [counts.take_news() for _, _, counts in counted]
    values = [
        (one.repetition_penalty, one.presence_penalty, one.frequency_penalty)
        for _, one, _ in counted
    ]
    columns_3Q = np.array(values, dtype=np.float32).T.copy()
    return Penalties(
        rows_Q=np.array([row for row, _, _ in counted], dtype=np.int64),
        slots_Q=np.array(slots, dtype=np.int64),
        sizes_Q=np.array([counts.size for _, _, counts in counted], dtype=np.int64),
        repetition_Q=columns_3Q[0],
        presence_Q=columns_3Q[1],
        frequency_Q=columns_3Q[2],
        changed_slots_E=_rows(
            list(zip(slots, [len(places) for places, _, _ in news], strict=True))
        ),
        changed_places_E=_flat([places for places, _, _ in news]),
        changed_ids_E=_flat([ids for _, ids, _ in news]),
        changed_counts_E=_flat([counts for _, _, counts in news]),
    )


def _limits(rules: TokenRules) -> bool:
    return rules.sampling.allowed_token_ids is not None


def _rows(lengths: Sequence[tuple[int, int]]) -> IntArray:
    rows = np.array([row for row, _ in lengths], dtype=np.int64)
    return np.repeat(rows, np.array([length for _, length in lengths], dtype=np.int64))


def _flat(parts: Sequence[Sequence[int]]) -> IntArray:
    return np.array(list(chain.from_iterable(parts)), dtype=np.int64)


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike = np.int64) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
