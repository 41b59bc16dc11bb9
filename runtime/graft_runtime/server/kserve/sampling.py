"""Sampling parameters as Triton's vLLM backend takes them: vLLM's own, and an adapter's name."""

from __future__ import annotations

from typing import Final

from graft_protocol.config import ServerSettings
from graft_runtime.ipc.messages import Sampling, ThoughtLimit
from graft_runtime.server.fields import ModelName, NumTop, PositiveInt, Unsupported
from graft_runtime.server.openai.sampling import UNSUPPORTED, SamplingFields
from graft_runtime.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS: Final = 16

KNOWN_UNSUPPORTED: Final[Unsupported] = {
    **UNSUPPORTED,
    "model": (),
    "stream": (False, True),  # what counts is the tensor of that name
    "stream_options": (),
    "guided_decoding": (),
    "adapter_source": (),
    "merged_adapters": (),
}


class TritonFields(SamplingFields):
    """What this surface honours."""

    max_tokens: PositiveInt = DEFAULT_MAX_TOKENS
    logprobs: NumTop | None = None
    lora_name: ModelName | None = None

    def told(
        self,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        *,
        max_tokens: int,
        needs_logprobs: bool,
        thought_limit: ThoughtLimit | None = None,
    ) -> Sampling:
        """Return what the engine is told.

        Args:
            tokenizer: The base model's.
            settings: The service's.
            max_tokens: Longest output.
            needs_logprobs: Whether an output tensor is made of them.
            thought_limit: How long the model may think.
        """
        needs_logprobs = needs_logprobs or self.logprob_token_ids is not None
        return self.sampling(
            tokenizer,
            settings,
            max_tokens=max_tokens,
            top_logprobs=0 if self.logprobs is None and needs_logprobs else self.logprobs,
            thought_limit=thought_limit,
        )


FIELD_NAMES: Final = frozenset(TritonFields.model_fields) - KNOWN_UNSUPPORTED.keys()
TEXT_FIELDS: Final = frozenset(
    {
        "stop",
        "bad_words",
        "lora_name",
        "guided_regex",
        "guided_grammar",
        "guided_whitespace_pattern",
    }
)
"""Fields whose strings are meant as such."""
