"""Log probabilities in the forms that OpenAI's two surfaces and vLLM use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.alternatives import Alternative, text_after
from graft_runtime.server.generation import Token
from graft_runtime.text.tokenizer import Tokenizer

FLOOR: Final = -9999.0
"""OpenAI's way to say that something is impossible, since JSON has no infinity."""


def round_logprob(value: float | None) -> float:
    """Return a log probability as JSON can hold it."""
    return FLOOR if value is None else max(round(value, 6), FLOOR)


def completion_logprobs(
    tokens: Sequence[Token], offset: int, *, by_id: bool = False
) -> dict[str, Any]:
    """Return parallel lists, as completions have them; a prompt's first token has no value.

    Args:
        tokens: What stands in the text.
        offset: Where in the text the first of them begins.
        by_id: Whether tokens are named by their ids.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "text_offset": offsets,
        "token_logprobs": [_value(token) for token in tokens],
        "tokens": [_name(token, by_id=by_id) for token in tokens],
        "top_logprobs": [_likeliest(token, by_id=by_id) for token in tokens],
    }


def _value(token: Token) -> float | None:
    return None if token.logprob is None else round_logprob(token.logprob)


def _name(token: Token | Alternative, *, by_id: bool) -> str:
    """Return how a token is named: texts can be alike, ids are not."""
    return f"token_id:{token.id}" if by_id else token.text


def _likeliest(token: Token, *, by_id: bool) -> dict[str, float] | None:
    """Return the chosen token and the likeliest ones; of those that read alike, the better."""
    if token.logprob is None:
        return None
    values = {_name(token, by_id=by_id): round_logprob(token.logprob)}
    for each in token.top:
        name, value = _name(each, by_id=by_id), round_logprob(each.logprob)
        values[name] = max(value, values.get(name, value))
    return values


def chat_logprobs(tokens: Sequence[Token], *, by_id: bool = False) -> dict[str, Any]:
    """Return a list of objects, as chats have it."""
    return {
        "content": [
            {
                **_entry(token, by_id=by_id),
                "top_logprobs": [_entry(each, by_id=by_id) for each in token.top],
            }
            for token in tokens
        ]
    }


def _entry(token: Token | Alternative, *, by_id: bool) -> dict[str, Any]:
    return {
        "token": _name(token, by_id=by_id),
        "logprob": round_logprob(token.logprob),
        "bytes": list(token.text.encode()),
    }


def prompt_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[TokenScore], num_top: int
) -> list[dict[str, Any] | None]:
    """Return vLLM's form: per token of the prompt the likeliest ones and itself, by id."""
    result: list[dict[str, Any] | None] = [None]
    for before, id, score in zip(ids[:-1], ids[1:], scores, strict=True):
        entries = {
            each: _ranked(tokenizer, before, each, logprob, rank)
            for rank, (each, logprob) in enumerate(score.top[:num_top], start=1)
        }
        entries[id] = _ranked(tokenizer, before, id, score.logprob, score.rank)
        result.append({str(each): entry for each, entry in entries.items()})
    return result


def _ranked(
    tokenizer: Tokenizer, before: int, id: int, logprob: float, rank: int
) -> dict[str, Any]:
    text = text_after(tokenizer, [before], id)
    return {"logprob": round_logprob(logprob), "rank": rank, "decoded_token": text}
