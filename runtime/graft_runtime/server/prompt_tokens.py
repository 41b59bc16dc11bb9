"""A prompt as tokens with their scores, for surfaces that echo it."""

from __future__ import annotations

from collections.abc import Sequence

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.alternatives import name_alternatives
from graft_runtime.server.generation import Token
from graft_runtime.text.detokenizer import Detokenizer
from graft_runtime.text.tokenizer import Tokenizer


def prompt_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[TokenScore], num_top: int
) -> list[Token]:
    """Return the prompt's tokens; the first has no score, since nothing stands before it.

    Texts tell what each token adds, control tokens written out.

    Args:
        tokenizer: The base model's.
        ids: The prompt.
        scores: Of its second token and those after it.
        num_top: How many of the likeliest tokens are named at each place.
    """
    texts = Detokenizer(tokenizer, skip_special_tokens=False)
    tokens = []
    for position, id in enumerate(ids):
        text = texts.push(id)
        special = tokenizer.is_special(id)
        if not position:
            tokens.append(Token(id, text, None, special))
            continue
        score = scores[position - 1]
        top = name_alternatives(tokenizer, ids[position - 1 : position], score.top[:num_top])
        tokens.append(Token(id, text, score.logprob, special, top))
    return tokens
