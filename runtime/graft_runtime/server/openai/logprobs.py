"""Log probabilities in the forms that OpenAI's two surfaces and vLLM use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.alternatives import text_after
from graft_runtime.server.generation import Token
from graft_runtime.text.tokenizer import Tokenizer

FLOOR: Final = -9999.0
"""OpenAI's way to say that something is impossible, since JSON has no infinity."""


def round_logprob(value: float | None) -> float:
    """Return a log probability as JSON can hold it."""
    return FLOOR if value is None else max(round(value, 6), FLOOR)


def completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """Return parallel lists, as completions have them; a prompt's first token has no value.

    Args:
        tokens: What stands in the text.
        offset: Where in the text the first of them begins.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "text_offset": offsets,
        "token_logprobs": [_value(token) for token in tokens],
        "tokens": [token.text for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
    }


def _value(token: Token) -> float | None:
    return None if token.logprob is None else round_logprob(token.logprob)


def _likeliest(token: Token) -> dict[str, float] | None:
    """Return the chosen token and the likeliest ones; of those that read alike, the better."""
    if token.logprob is None:
        return None
    values = {token.text: round_logprob(token.logprob)}
    for each in token.top:
        value = round_logprob(each.logprob)
        values[each.text] = max(value, values.get(each.text, value))
    return values


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return a list of objects, as chats have it."""
    return {
        "content": [
            {
                **_entry(token.text, token.logprob),
                "top_logprobs": [_entry(each.text, each.logprob) for each in token.top],
            }
            for token in tokens
        ]
    }


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": round_logprob(logprob), "bytes": list(text.encode())}


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
