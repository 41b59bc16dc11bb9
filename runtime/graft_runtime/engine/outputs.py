"""From a step's arrays back to requests: what each row got, and the message that tells it.

The engine calls it; it changes no request.

Shape legend: D rows of `Decodes`, L rows that reach their last token, S rows that get a new token,
P tokens of prompts that are scored, E rows whose hidden states are pooled, H hidden size, K
likeliest tokens, N named tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from graft_runtime.engine.batch import Batch, Row
from graft_runtime.engine.plan import PromptScores, StepResult
from graft_runtime.engine.request import Request
from graft_runtime.ipc.messages import FinishReason, TokenOutput, TokenScore
from graft_runtime.sampling.batch import FloatArray, IntArray

NOT_FINITE = -1

Alternatives = list[tuple[int, float]]


class RowOutput(NamedTuple):
    """What a step gave one row."""

    token: int = NOT_FINITE
    """Negative where there is none."""
    logprob: float | None = None
    top: Alternatives | None = None
    """The likeliest tokens, or those that its request names behind the chosen one."""
    prompt_scores: Sequence[TokenScore] = ()
    pooled_H: FloatArray | None = None
    """Sum of hidden states, where any are pooled."""


class StepOutput(NamedTuple):
    """What a step gave its rows."""

    decoded_D: IntArray | None
    """A token for each of the batch's decodes, negative where there is none; None if these brought
    more than tokens."""
    rows: list[RowOutput]
    """What the other rows got: all, without ``decoded_D``."""


def step_output(batch: Batch, sampled: IntArray, result: StepResult) -> StepOutput:
    """Return each row's part of the result.

    Args:
        batch: The step's rows.
        sampled: Which of those that reach their last token got one, see `SamplePlan`.
        result: What the step brought.
    """
    num_decodes = len(batch.decodes)
    if not num_decodes or not result.is_plain:
        return StepOutput(None, list(_row_outputs(batch.rows, sampled, result)))
    tokens_L = result.token_ids_S
    if len(tokens_L) < len(batch.ending):  # some have ended between the launch and the sampling
        tokens_L = np.full(len(batch.ending), NOT_FINITE)
        tokens_L[sampled] = result.token_ids_S
    fresh = iter(tokens_L[num_decodes:].tolist())
    rows = [RowOutput(next(fresh)) if row.samples else RowOutput() for row in batch.others]
    return StepOutput(tokens_L[:num_decodes], rows)


def _row_outputs(rows: Sequence[Row], sampled: IntArray, result: StepResult) -> Iterator[RowOutput]:
    tokens = result.token_ids_S.tolist()
    places = {row: place for place, row in enumerate(sampled.tolist())}
    logprobs_S = None if result.logprobs_S is None else result.logprobs_S.tolist()
    ending = scored = pooled = named = 0
    for row in rows:
        sum_H = None
        if row.pooled and result.pooled_EH is not None:
            sum_H = result.pooled_EH[pooled]
            pooled += 1
        prompt: Sequence[TokenScore] = ()
        if row.scored:
            prompt = _prompt_scores(row, result.prompt, scored)
            scored += len(row.scored)
        place = places.get(ending) if row.samples else None
        ending += row.samples
        if place is None:
            yield RowOutput(prompt_scores=prompt, pooled_H=sum_H)
            continue
        logprob = None if logprobs_S is None else logprobs_S[place]
        top = None
        if result.top is not None:
            ids, logprobs = result.top.ids_SK[place], result.top.logprobs_SK[place]
            top = _alternatives(ids, logprobs, row.request.sampling.top_logprobs)
        ids_N = row.request.sampling.logprob_token_ids
        if ids_N and result.named_N is not None:
            top = _named(tokens[place], logprob, ids_N, result.named_N[named:])
            named += len(ids_N)
        yield RowOutput(tokens[place], logprob, top, prompt, sum_H)


def token_output(request: Request, row: RowOutput, finish: FinishReason | None) -> TokenOutput:
    """Return the message for a request's new token; the first one brings the prompt's scores."""
    sampling = request.sampling
    if not sampling.logprobs and sampling.prompt_logprobs is None:
        cached = request.num_cached
        return TokenOutput(
            request.request_id,
            [row.token],
            None,
            finish,
            num_cached=cached,
            num_preemptions=request.epoch,
        )
    with_scores = sampling.prompt_logprobs is not None and request.num_output == 1
    wants_others = sampling.top_logprobs or sampling.logprob_token_ids
    has_logprobs = sampling.logprobs and row.logprob is not None
    return TokenOutput(
        request.request_id,
        [row.token],
        [row.logprob] if has_logprobs and row.logprob is not None else None,
        finish,
        num_cached=request.num_cached,
        num_preemptions=request.epoch,
        top_logprobs=[row.top] if wants_others and row.top is not None else None,
        prompt_scores=request.prompt_scores if with_scores else None,
    )


def ended(request_id: str, finish: FinishReason | None, error: str | None = None) -> TokenOutput:
    """Return the end of a request that brings nothing."""
    return TokenOutput(request_id, [], None, finish, error)


def impossible(request_id: str, message: str) -> TokenOutput:
    """Return the end of a request that cannot be fulfilled by what it asks for itself."""
    return TokenOutput(request_id, [], None, "error", message, is_impossible=True)


def out_of_tokens(request: Request) -> TokenOutput:
    """Return the end of a request whose own rules leave no token that could come next."""
    failed = None if request.grammar is None else request.grammar.error
    if failed is not None:
        message = f"the output's grammar cannot be followed any further: {failed}"
        return impossible(request.request_id, message)
    message = "the request's own rules leave no token that could come next"
    return impossible(request.request_id, message)


def pooled_output(request: Request) -> TokenOutput:
    """Return the message that ends a request for hidden states; it brings no token."""
    pooled_H = request.pooled_H
    assert pooled_H is not None, "every part of the prompt adds to it"  # noqa: S101 - ours
    count = request.num_prompt if request.sampling.pooling == "mean" else 1
    return TokenOutput(
        request.request_id,
        [],
        finish_reason="stop",
        num_cached=request.num_cached,
        embedding=(pooled_H / count).astype("<f4").tobytes(),
    )


def _prompt_scores(row: Row, prompt: PromptScores | None, start: int) -> list[TokenScore]:
    if prompt is None:
        return []
    num_top = row.request.sampling.prompt_logprobs or 0
    return [
        TokenScore(
            float(prompt.logprobs_P[index]),
            int(prompt.ranks_P[index]),
            _alternatives(prompt.top_ids_PK[index], prompt.top_logprobs_PK[index], num_top),
        )
        for index in range(start, start + len(row.scored))
    ]


def _named(
    token: int, logprob: float | None, ids_N: Sequence[int], values_N: FloatArray
) -> Alternatives:
    """Return the chosen token and behind it the named ones, in the order of their request."""
    values = values_N[: len(ids_N)].tolist()
    others = [pair for pair in zip(ids_N, values, strict=True) if pair[0] != token]
    return others if logprob is None else [(token, logprob), *others]


def _alternatives(ids_K: Any, logprobs_K: Any, count: int) -> Alternatives:
    """Return the first ``count`` tokens that are possible at all."""
    pairs = zip(ids_K[:count].tolist(), logprobs_K[:count].tolist(), strict=True)
    return [(id, logprob) for id, logprob in pairs if not math.isinf(logprob)]
