"""The sampling fields that completions and chat completions share."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.server.fields import (
    GREEDY_BELOW,
    MAX_STOP_TOKEN_IDS,
    Fields,
    Int32,
    Int64,
    ModelName,
    Temperature,
    TopK,
    TopP,
    Unsupported,
    check_stops,
    check_token_ids,
)
from graft_runtime.server.prompts import draw_seed
from graft_runtime.text.tokenizer import Tokenizer

UNSUPPORTED: Final[Unsupported] = {
    "api_token": (),
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({}, []),
    "min_p": (0,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "logits_processors": ([],),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "priority": (0,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "cache_salt": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "repetition_detection": (),
    "watermarking": (False,),
}
"""Of OpenAI and of vLLM; what a value in brackets asks for happens anyway."""


class StreamOptions(Fields):
    """What a stream says beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Fields):
    """Fields of both surfaces."""

    model: ModelName | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    seed: Int64 | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: list[Int32] = Field(default=[], max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            message = "must be a string or a list of strings"
            raise ValueError(message)
        return check_stops(stops)

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingFields:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise InvalidRequestError("`stream_options` needs `stream`", param="stream_options")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk carries the token counts so far."""
        return self.wants_usage and bool(self.stream_options.continuous_usage_stats)

    def sampling(self, tokenizer: Tokenizer, *, max_tokens: int, logprobs: bool) -> Sampling:
        """Return what the engine is told.

        Raises:
            InvalidRequestError: A stop token is no token.
        """
        check_token_ids(self.stop_token_ids, tokenizer, "stop_token_ids")
        greedy = self.temperature < GREEDY_BELOW
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=draw_seed() if self.seed is None else self.seed % 2**64,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )
