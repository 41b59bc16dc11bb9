"""The ``thinking_token_budget`` field: how long a model may think, as the engine is told.

What a thought is, the template decides that knows its marks; chats, and the surfaces that complete
a bare prompt, call this.
"""

from __future__ import annotations

import asyncio
from typing import Final

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import ThoughtLimit
from graft_runtime.text.model_text import ModelText
from graft_runtime.text.speech.thoughts import CLOSING, OPENING
from graft_runtime.text.tokenizer import Tokenizer

FIELD: Final = "thinking_token_budget"
UNLIMITED: Final = -1
"""As vLLM has it: the same as no budget."""


def limit_thoughts(
    budget: int | None, tokenizer: Tokenizer, *, thinks: bool, is_open: bool, num_used: int = 0
) -> ThoughtLimit | None:
    """Return the limit that a budget means; None if it means none.

    Args:
        budget: What the client asks for, in tokens.
        tokenizer: The base model's.
        thinks: Whether the model's template knows of thoughts.
        is_open: Whether the prompt leaves off amid one.
        num_used: How many tokens of that the prompt has.

    Raises:
        InvalidRequestError: Nobody could tell where a thought ends.
    """
    if budget is None or budget == UNLIMITED:
        return None
    if not thinks:
        message = f"`{FIELD}` is not supported: the model's chat template knows no thoughts"
        raise InvalidRequestError(message, param=FIELD)
    return ThoughtLimit(
        max_tokens=max(budget - num_used, 0),
        opening=OPENING,
        closing=CLOSING,
        closing_ids=tuple(tokenizer.encode_trusted(CLOSING)),
        is_open=is_open,
    )


async def limit_after(
    budget: int | None, text: ModelText, prompt_ids: list[int]
) -> ThoughtLimit | None:
    """Return the limit after a bare prompt, whose own open thought counts; read off the loop.

    Raises:
        InvalidRequestError: As `limit_thoughts`.
    """
    if budget is None or budget == UNLIMITED:
        return None
    return await asyncio.to_thread(_after, budget, text, prompt_ids)


def _after(budget: int, text: ModelText, prompt_ids: list[int]) -> ThoughtLimit | None:
    template = text.chat_for(has_tools=False)
    prompt = text.tokenizer.decode(prompt_ids, skip_special_tokens=False)
    _, opening, thought = prompt.rpartition(OPENING)
    is_open = bool(opening) and CLOSING not in thought
    used = text.tokenizer.encode(thought, add_special_tokens=False) if is_open else ()
    return limit_thoughts(
        budget,
        text.tokenizer,
        thinks=template is not None and template.traits.thinks,
        is_open=is_open,
        num_used=len(used),
    )
