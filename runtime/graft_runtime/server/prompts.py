"""From a validated request to jobs: admission, the model's name, tokens, and room in the context.

The steps come in the order of their cost, so that what can be refused cheaply is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from graft_runtime.errors import ContextLengthError, NotReadyError
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.text.model_text import ModelText
from graft_runtime.text.tokenizer import Tokenizer


async def admit(frontend: Frontend, prompt_chars: int) -> ModelText:
    """Return the text tools, if a request of this size may come in now.

    Raises:
        OverloadedError: The queue is full.
        DrainingError: The pod is going down.
        NotReadyError: The base model is still on its way.
    """
    frontend.backend.check_admission(prompt_chars)
    if not frontend.backend.max_model_len:
        raise NotReadyError("the model is still being loaded", retry_after_seconds=5)
    return await frontend.texts.get()


async def encode_text(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, max_model_len: int | None
) -> list[int]:
    """Return a text's tokens without stalling the loop; without a limit it may be of any length.

    Raises:
        ContextLengthError: It cannot fit, so none are sought.
    """
    if max_model_len is not None:
        refuse_hopeless(tokenizer, len(text), max_model_len)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


def refuse_hopeless(tokenizer: Tokenizer, num_chars: int, max_model_len: int) -> None:
    """Refuse a text that would not fit even if it were made of the longest tokens.

    Raises:
        ContextLengthError: It would not.
    """
    fewest = num_chars // tokenizer.longest_token_chars
    if fewest > max_model_len:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, the prompt has at least {fewest}."
        )
        raise ContextLengthError(message, param="prompt")


def fit_output(
    num_prompt_tokens: int, max_tokens: int | None, default: int | None, max_model_len: int
) -> int:
    """Return how many tokens a request may generate.

    Args:
        num_prompt_tokens: Length of its prompt.
        max_tokens: What the client asked for.
        default: What it gets without asking, as far as it fits; None is all that fits.
        max_model_len: Longest prompt plus output.

    Raises:
        ContextLengthError: Prompt and output do not fit together.
    """
    room = max_model_len - num_prompt_tokens
    wanted = max_tokens or min(default or room, max(room, 1))
    if wanted > room or room < 1:
        total = num_prompt_tokens + wanted
        message = (
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, you requested {total} tokens ({num_prompt_tokens} in the prompt, "
            f"{wanted} for the output)."
        )
        raise ContextLengthError(message, param="max_tokens" if max_tokens else "prompt")
    return wanted


def job_ids(exchange: Exchange, count: int) -> Sequence[str]:
    """Return ids that stay unique in the engine when clients repeat theirs."""
    stem = f"{exchange.request_id}-{secrets.token_hex(4)}"
    return [f"{stem}-{index}" for index in range(count)]


def draw_seed() -> int:
    """Return a seed for a request that brought none."""
    return secrets.randbits(64)
