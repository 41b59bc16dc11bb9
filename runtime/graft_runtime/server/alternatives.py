"""Names for tokens that stand nowhere in a text: those that might have been chosen, or a prompt's.

`generation` and the surfaces call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, and how likely it was."""

    id: int
    text: str
    logprob: float
    special: bool


def name_alternatives(
    tokenizer: Tokenizer, before: Sequence[int], pairs: Sequence[tuple[int, float]]
) -> tuple[Alternative, ...]:
    """Return tokens with their texts.

    Args:
        tokenizer: The base model's.
        before: The token that they would follow, or none.
        pairs: Ids and log probabilities.
    """
    return tuple(
        Alternative(id, text_after(tokenizer, before, id), logprob, tokenizer.is_special(id))
        for id, logprob in pairs
    )


def text_after(tokenizer: Tokenizer, before: Sequence[int], id: int) -> str:
    """Return what a token adds to the text before it: many begin with a space only there."""
    if tokenizer.is_special(id):
        return tokenizer.special_text(id)
    head = tokenizer.decode(before, skip_special_tokens=True)
    whole = tokenizer.decode([*before, id], skip_special_tokens=True)
    if whole.startswith(head):
        return whole[len(head) :]
    return tokenizer.decode([id], skip_special_tokens=True)
