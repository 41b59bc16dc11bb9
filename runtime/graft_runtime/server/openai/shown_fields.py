"""Fields that decide how much of a prompt is read and how tokens are shown, as vLLM has them."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.fields import Fields, Unsupported
from graft_runtime.server.openai.sampling import UNSUPPORTED


class ShownFields(Fields):
    """Fields of completions and of chats."""

    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, lt=2**31)
    """-1 means as many as the context takes."""
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @property
    def truncates(self) -> bool:
        """Whether a prompt may be longer than the context."""
        return self.truncate_prompt_tokens is not None

    def truncated(self, token_ids: list[int], max_model_len: int) -> list[int]:
        """Return what is to be read of a prompt.

        Raises:
            InvalidRequestError: That is more than the context takes, or nothing.
        """
        wanted = self.truncate_prompt_tokens
        if wanted is None:
            return token_ids
        if wanted == 0 or wanted > max_model_len:
            message = f"`truncate_prompt_tokens` must be -1 or 1 to {max_model_len}"
            raise InvalidRequestError(message, param="truncate_prompt_tokens")
        # All of the context would leave no room for an output.
        kept = max_model_len - 1 if wanted == -1 else wanted
        return token_ids[-kept:] if self.truncation_side == "left" else token_ids[:kept]


SHOWN_UNSUPPORTED: Final[Unsupported] = {
    name: values for name, values in UNSUPPORTED.items() if name not in ShownFields.model_fields
}
"""Of the sampling fields, where these are honoured."""
