"""The sampling fields that completions and chat completions share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from graft_protocol.config import ServerSettings
from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling, ThoughtLimit
from graft_runtime.server.backend import Terms
from graft_runtime.server.fields import (
    GREEDY_BELOW,
    MAX_ALLOWED,
    MAX_NAMED_TOKENS,
    MAX_SALT_CHARS,
    MAX_STOP_TOKEN_IDS,
    Choices,
    Fields,
    Finite,
    Int32,
    Int64,
    MinP,
    ModelName,
    NumTop,
    Penalty,
    Repetition,
    RouteKey,
    Temperature,
    TopK,
    TopP,
    Unsupported,
    check_stops,
    check_token_ids,
)
from graft_runtime.server.openai.shapes import STOPS, as_shape
from graft_runtime.server.openai.token_fields import bad_word_ids, check_bad_words, check_bias
from graft_runtime.server.processor_fields import parse_processors
from graft_runtime.server.prompts import draw_seed
from graft_runtime.server.structured import Form, openai_form
from graft_runtime.server.thought_limits import UNLIMITED
from graft_runtime.server.watermarks import WatermarkField
from graft_runtime.text.tokenizer import Tokenizer

UNSUPPORTED: Final[Unsupported] = {
    "api_token": (),
    "best_of": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "repetition_detection": (),
}
"""Of OpenAI and of vLLM; what a value in brackets asks for happens anyway."""

_GUIDED: Final = frozenset(
    f"guided_{name}"
    for name in ("json", "regex", "choice", "grammar", "json_object", "whitespace_pattern")
)


class StreamOptions(Fields):
    """What a stream says beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Fields):
    """Fields of both surfaces."""

    model: ModelName | None = None
    user: RouteKey | None = None
    """Requests of one user get the same version of an adapter."""
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: Repetition = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[int, Finite] = Field(default={})
    allowed_token_ids: list[Int32] | None = Field(
        default=None, min_length=1, max_length=MAX_ALLOWED, fail_fast=True
    )
    bad_words: list[str] = Field(default=[], fail_fast=True)
    min_tokens: int = Field(default=0, ge=0, lt=2**31)
    n: Choices = 1
    prompt_logprobs: NumTop | None = None
    logprob_token_ids: list[Int32] | None = Field(
        default=None, min_length=1, max_length=MAX_NAMED_TOKENS, fail_fast=True
    )
    """Tokens that are told with each one of the output, instead of the likeliest ones."""
    thinking_token_budget: int | None = Field(default=None, ge=UNLIMITED, lt=2**31)
    seed: Int64 | None = None
    stop: tuple[str, ...] = Field(default=(), json_schema_extra=as_shape(STOPS))
    stop_token_ids: list[Int32] = Field(default=[], max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool = False
    ignore_eos_token: bool = False
    """LoRAX's name for the same."""
    priority: int = Field(default=0, ge=0, lt=2**31)
    """Above 0 it yields to others; nobody can push ahead of them."""
    cache_salt: str = Field(default="", max_length=MAX_SALT_CHARS)
    include_stop_str_in_output: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    watermarking: WatermarkField = None
    logits_processors: tuple[Any, ...] = ()
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: Any = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    """Of no consequence: there is one."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            message = "must be a string or a list of strings"
            raise ValueError(message)
        return check_stops(stops)

    @field_validator("logits_processors", mode="before")
    @classmethod
    def _processors(cls, value: Any) -> Any:
        return parse_processors(value)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _bias(cls, value: Any) -> Any:
        return check_bias(value)

    @field_validator("bad_words")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        return check_bad_words(value)

    @model_validator(mode="after")
    def _prompt_logprobs_need_a_whole_answer(self) -> SamplingFields:
        if self.prompt_logprobs is not None and self.stream:
            message = "`prompt_logprobs` cannot be streamed"
            raise InvalidRequestError(message, param="prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingFields:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise InvalidRequestError("`stream_options` needs `stream`", param="stream_options")
        return self

    @cached_property
    def form(self) -> Form | None:
        """What the output must look like.

        Raises:
            InvalidRequestError: Malformed, or asked for twice.
        """
        fields = {name: value for name, value in self if name in _GUIDED and value is not None}
        guided = {name.removeprefix("guided_"): value for name, value in fields.items()}
        return openai_form(self.response_format, self.structured_outputs, guided)

    @model_validator(mode="after")
    def _form_is_readable(self) -> SamplingFields:
        _ = self.form
        return self

    @property
    def terms(self) -> Terms:
        """On which terms it is served."""
        return Terms(self.priority, self.cache_salt)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk carries the token counts so far."""
        return self.wants_usage and bool(self.stream_options.continuous_usage_stats)

    def with_defaults(self, defaults: Mapping[str, float]) -> Self:
        """Return the fields with a model's own values where the client gave none.

        Values that are out of range are the model's fault, and not taken.
        """
        absent = {name: defaults[name] for name in defaults.keys() - self.model_fields_set}
        if not absent:
            return self
        try:
            checked = SamplingFields.model_validate(absent)
        except ValidationError:
            return self
        return self.model_copy(update={name: getattr(checked, name) for name in absent})

    def sampling(
        self,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        *,
        max_tokens: int,
        top_logprobs: int | None,
        prompt_logprobs: int | None = None,
        thought_limit: ThoughtLimit | None = None,
    ) -> Sampling:
        """Return what the engine is told.

        Args:
            tokenizer: The base model's.
            settings: The service's.
            max_tokens: Longest output.
            top_logprobs: Likeliest tokens that are wanted with each token; None wants no logprobs.
            prompt_logprobs: The same for the prompt, where the surface itself asks for them.
            thought_limit: How long the model may think; under a grammar it does not think at all.

        Raises:
            InvalidRequestError: A token is none, or the output cannot be as long as it must.
        """
        self._check_tokens(tokenizer, max_tokens)
        named = tuple(dict.fromkeys(self.logprob_token_ids or ()))
        if named and top_logprobs is None:
            message = "`logprob_token_ids` needs `logprobs`"
            raise InvalidRequestError(message, param="logprob_token_ids")
        greedy = self.temperature < GREEDY_BELOW
        allowed = self.allowed_token_ids
        wanted = [each for each in (self.prompt_logprobs, prompt_logprobs) if each is not None]
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            bad_words=bad_word_ids(self.bad_words, tokenizer),
            allowed_token_ids=None if allowed is None else tuple(allowed),
            min_tokens=self.min_tokens,
            seed=draw_seed() if self.seed is None else self.seed % 2**64,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos or self.ignore_eos_token,
            logprobs=top_logprobs is not None,
            top_logprobs=0 if named else top_logprobs or 0,
            logprob_token_ids=named,
            prompt_logprobs=max(wanted, default=None),
            thought_limit=None if self.form is not None else thought_limit,
            watermark=None if self.watermarking is None else self.watermarking.told(settings),
            processors=self.logits_processors,
        )

    def _check_tokens(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        check_token_ids(self.stop_token_ids, tokenizer, "stop_token_ids")
        check_token_ids(list(self.logit_bias), tokenizer, "logit_bias")
        check_token_ids(self.allowed_token_ids or [], tokenizer, "allowed_token_ids")
        check_token_ids(self.logprob_token_ids or [], tokenizer, "logprob_token_ids")
        if self.min_tokens > max_tokens:
            message = f"`min_tokens` must not be more than the longest output, {max_tokens}"
            raise InvalidRequestError(message, param="min_tokens")
