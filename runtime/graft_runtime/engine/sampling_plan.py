"""The sampling part of a step's plan: requests' parameters and token rules as flat arrays.

Shape legend: S rows whose next token is chosen, B biased tokens of all rows, A allowed tokens of
all rows, Q penalised rows, E changed counts of all of them, G rows that follow a grammar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from graft_runtime.engine.request import Request
from graft_runtime.engine.token_rules import TokenRules, as_values
from graft_runtime.errors import PluginError
from graft_runtime.sampling.batch import (
    DeviceCall,
    Edits,
    IntArray,
    Penalties,
    SamplingBatch,
    TokenMasks,
    WatermarkedRow,
)
from graft_runtime.sampling.interface import DeviceLogitsProcessor, HostLogitsProcessor, Row
from graft_runtime.sampling.plugins import BoundProcessor


def build_sampling(requests: Sequence[Request]) -> SamplingBatch:
    """Flatten the requests that get a token.

    Changes nothing in them, but that new counts of their tokens are taken for sent: what is
    returned must reach the device, or the requests must `forget_sent`.
    """
    sampling = [request.sampling for request in requests]

    def column(name: str, dtype: npt.DTypeLike) -> Any:
        return np.array(list(map(attrgetter(name), sampling)), dtype=dtype)

    return SamplingBatch(
        temperature_S=column("temperature", np.float32),
        top_k_S=column("top_k", np.int32),
        top_p_S=column("top_p", np.float32),
        min_p_S=column("min_p", np.float32),
        typical_p_S=column("typical_p", np.float32),
        seed_S=column("seed", np.uint64),
        sample_index_S=column("sample_index", np.int64),
        position_S=np.array([request.num_output for request in requests], dtype=np.int64),
        wants_logprobs=any(map(attrgetter("logprobs"), sampling)),
        num_top_S=column("top_logprobs", np.int64),
        is_processed_S=column("processed_logprobs", np.bool_),
        edits=_edits(requests),
        penalties=_penalties(requests),
        masks=_masks(requests),
        watermarked=tuple(_watermarked(requests)),
        device_calls=tuple(_device_calls(requests)),
    )


def _device_calls(requests: Sequence[Request]) -> Iterator[DeviceCall]:
    for index, request in enumerate(requests):
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


def _watermarked(requests: Sequence[Request]) -> Iterator[WatermarkedRow]:
    for row, request in enumerate(requests):
        mark = request.sampling.watermark
        if mark is not None:
            yield WatermarkedRow(row, mark, tuple(request.tokens[-mark.context_width :]))


def _masks(requests: Sequence[Request]) -> TokenMasks | None:
    """Return which tokens the requests' grammars allow next; None when nobody has one."""
    followed = [(row, one.grammar) for row, one in enumerate(requests) if one.grammar is not None]
    if not followed:
        return None
    states = [state for _, state in followed]
    rows_G = np.array([row for row, _ in followed], dtype=np.int64)
    return TokenMasks(rows_G, states[0].vocabulary.fill(states))


def _edits(requests: Sequence[Request]) -> Edits | None:
    """Return what the requests' rules come to in this step; None when nothing."""
    ruled = [(row, one, one.rules) for row, one in enumerate(requests) if one.rules is not None]
    hosted = [(row, bias) for row, one in enumerate(requests) for bias in _host_biases(one)]
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


def _penalties(requests: Sequence[Request]) -> Penalties | None:
    """Return the penalised rows with what is new of their tokens; None when there are none."""
    counted = [
        (row, one.sampling, one.rules.counts)
        for row, one in enumerate(requests)
        if one.rules is not None and one.rules.counts is not None
    ]
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
        changed_places_E=_joined([places for places, _, _ in news]),
        changed_ids_E=_joined([ids for _, ids, _ in news]),
        changed_counts_E=_joined([counts for _, _, counts in news]),
    )


def _limits(rules: TokenRules) -> bool:
    return rules.sampling.allowed_token_ids is not None


def _rows(lengths: Sequence[tuple[int, int]]) -> IntArray:
    rows = np.array([row for row, _ in lengths], dtype=np.int64)
    return np.repeat(rows, np.array([length for _, length in lengths], dtype=np.int64))


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike = np.int64) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
