"""Fields that name single tokens or words: read into token ids, within limits."""

from __future__ import annotations

import re
from typing import Any, Final

from graft_runtime.server.fields import MAX_BAD_WORDS, MAX_BIASES, MAX_STOP_CHARS
from graft_runtime.text.tokenizer import Tokenizer

LARGEST_BIAS: Final = 100.0


def check_bias(value: Any) -> dict[int, float]:
    """Read a ``logit_bias``: token ids, as JSON writes them, to numbers.

    Values beyond OpenAI's range are brought into it, as vLLM does; an empty list is no bias.

    Raises:
        ValueError: Another form, or too many; pydantic names the field.
    """
    if value == []:
        return {}
    if not isinstance(value, dict):
        message = "must be an object of token ids and numbers"
        raise ValueError(message)  # noqa: TRY004 - pydantic turns this one into the answer
    if len(value) > MAX_BIASES:
        message = f"at most {MAX_BIASES} tokens can be biased"
        raise ValueError(message)
    return {_token_id(id): _bias(bias) for id, bias in value.items()}


def _token_id(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        message = "a key is no token id"
        raise ValueError(message)
    return int(text)


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = "a bias is a number"
        raise ValueError(message)  # noqa: TRY004 - as above
    return float(max(-LARGEST_BIAS, min(LARGEST_BIAS, value)))


def check_bad_words(words: list[str]) -> list[str]:
    """Check ``bad_words``.

    Raises:
        ValueError: Too many, empty or too long; pydantic names the field.
    """
    if len(words) > MAX_BAD_WORDS:
        message = f"at most {MAX_BAD_WORDS} bad words are allowed"
        raise ValueError(message)
    if any(not word.strip() or len(word) > MAX_STOP_CHARS for word in words):
        message = f"a bad word has 1 to {MAX_STOP_CHARS} characters, and not only spaces"
        raise ValueError(message)
    return words


def bad_word_ids(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that write a word, at a text's start and after a space."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (bare, f" {bare}"):
            sequences[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
    return tuple(sequence for sequence in sequences if sequence)
