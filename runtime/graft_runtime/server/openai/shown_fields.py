"""Fields of completions and chats alone: the adapter, the prompt's length, how tokens are shown."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.adapter_choice import AdapterFields
from graft_runtime.server.backend import Target
from graft_runtime.server.context import SAFE_ID, Exchange, Frontend
from graft_runtime.server.fields import PositiveInt, Unsupported
from graft_runtime.server.openai.sampling import UNSUPPORTED, SamplingFields


class ShownFields(SamplingFields, AdapterFields):
    """Fields of completions and of chats."""

    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, lt=2**31)
    """-1 means as many as the context takes."""
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    request_id: str | None = Field(default=None, pattern=rf"^{SAFE_ID}$")
    """Taken where no header brings one."""
    stream_interval: PositiveInt = 1
    """Tokens of a stream that come together; the first comes alone."""

    async def target(self, frontend: Frontend, exchange: Exchange) -> Target:
        """Return what the request's model is; its exchange takes the id that the body brings.

        Raises:
            RequestError: It cannot be had.
        """
        exchange.name(self.request_id)
        name = await self.chosen_name(frontend, self.model, param="model")
        return frontend.backend.resolve(name, exchange.route_key or self.user)

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
