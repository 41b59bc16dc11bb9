"""The parameters of the Text Generation Inference surface, as TGI and LoRAX clients send them."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from graft_protocol.config import ServerSettings
from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.server.adapter_choice import AdapterFields
from graft_runtime.server.fields import (
    GREEDY_BELOW,
    MAX_CHOICES,
    Fields,
    Finite,
    ModelName,
    Penalty,
    PositiveInt,
    Repetition,
    TopP,
    TypicalP,
    Unsigned64,
    Unsupported,
    check_stops,
    parse_fields,
)
from graft_runtime.server.prompts import draw_seed
from graft_runtime.server.structured import Form, response_form
from graft_runtime.server.watermarks import WatermarkField

MAX_TOP_TOKENS: Final = 5
"""TGI's own default."""

UNSUPPORTED_PARAMETERS: Final[Unsupported] = {
    "adapter_parameters": (),
    "api_token": (),
    "apply_chat_template": (False,),
}
"""Of TGI and of LoRAX; what a value in brackets asks for happens anyway."""

_UNSUPPORTED: Final[Unsupported] = {"api_token": (), "suffix": ()}


class Parameters(AdapterFields):
    """What is honoured of ``parameters``."""

    max_new_tokens: PositiveInt | None = None
    temperature: Finite | None = Field(default=None, le=100)
    top_k: int | None = Field(default=None, lt=2**31)
    top_p: TopP | None = None
    typical_p: TypicalP | None = None
    repetition_penalty: Repetition = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    best_of: int = 1
    top_n_tokens: int = Field(default=0, ge=0, le=MAX_TOP_TOKENS)
    return_k_alternatives: int = Field(default=0, ge=0, le=MAX_TOP_TOKENS)
    decoder_input_details: bool = False
    do_sample: bool = False
    seed: Unsigned64 | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool | None = None
    details: bool = False
    truncate: PositiveInt | None = None
    adapter_id: ModelName | None = None
    ignore_eos_token: bool = False
    watermark: WatermarkField = None
    grammar: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _strings(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
            message = "must be a list of strings"
            raise ValueError(message)
        return check_stops(value)

    @field_validator("temperature")
    @classmethod
    def _not_negative(cls, value: float | None) -> float | None:
        # 0 is LoRAX's way to say greedy; TGI's clients never send it.
        if value is not None and value < 0:
            message = "must be strictly positive"
            raise ValueError(message)
        return value

    @field_validator("top_k")
    @classmethod
    def _not_off_by_zero(cls, value: int | None) -> int | None:
        if value is not None and value <= 0:
            message = "must be strictly positive"
            raise ValueError(message)
        return value

    @field_validator("best_of")
    @classmethod
    def _few(cls, value: int) -> int:
        if not 1 <= value <= MAX_CHOICES:
            message = f"must be > 0 and <= {MAX_CHOICES}"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _one_adapter(self) -> Parameters:
        if self.adapter_id and self.merged_adapters is not None:
            message = "at most one of `adapter_id` or `merged_adapters` may be provided"
            raise InvalidRequestError(message, param="parameters.merged_adapters")
        return self

    @model_validator(mode="after")
    def _best_of_needs_differences(self) -> Parameters:
        if self.best_of > 1 and not self.samples:
            message = "you must use sampling when `best_of` is > 1"
            raise InvalidRequestError(message, param="parameters.best_of")
        if self.best_of > 1 and self.seed is not None:
            message = "`seed` must not be set when `best_of` > 1"
            raise InvalidRequestError(message, param="parameters.best_of")
        return self

    @cached_property
    def form(self) -> Form | None:
        """What the output must look like: TGI's ``grammar`` or LoRAX's ``response_format``.

        Raises:
            InvalidRequestError: Malformed, or both are there.
        """
        if self.grammar is not None and self.response_format is not None:
            message = "`grammar` and `response_format` exclude each other"
            raise InvalidRequestError(message, param="parameters.grammar")
        if self.grammar is not None:
            return response_form(self.grammar, "parameters.grammar")
        if self.response_format is not None:
            return response_form(self.response_format, "parameters.response_format")
        return None

    @model_validator(mode="after")
    def _form_is_readable(self) -> Parameters:
        _ = self.form
        return self

    def check_streamable(self) -> None:
        """Refuse what belongs to whole answers, in TGI's words.

        Raises:
            InvalidRequestError: ``param`` names it.
        """
        if self.best_of > 1:
            message = "`best_of` != 1 is not supported when streaming tokens"
            raise InvalidRequestError(message, param="parameters.best_of")
        if self.decoder_input_details:
            message = "`decoder_input_details` == true is not supported when streaming tokens"
            raise InvalidRequestError(message, param="parameters.decoder_input_details")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: on request, or because a parameter would else mean nothing."""
        if self.temperature is not None and self.temperature < GREEDY_BELOW:
            return False
        return (
            self.do_sample
            or self.temperature not in (None, 1.0)
            or self.top_k is not None
            or self.top_p not in (None, 1.0)
            or self.typical_p not in (None, 1.0)
        )

    @property
    def has_details(self) -> bool:
        """Whether the answer has details: details of the prompt imply them."""
        return self.details or self.decoder_input_details

    def sampling(self, settings: ServerSettings, *, max_tokens: int) -> Sampling:
        """Return what the engine is told.

        Every token's log probability belongs to the answer, and is that of what it was drawn from.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if self.samples else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            typical_p=1.0 if self.typical_p is None else self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=draw_seed() if self.seed is None else self.seed,
            ignore_eos=self.ignore_eos_token,
            logprobs=True,
            top_logprobs=max(self.top_n_tokens, self.return_k_alternatives),
            processed_logprobs=True,
            prompt_logprobs=0 if self.decoder_input_details else None,
            watermark=None if self.watermark is None else self.watermark.told(settings),
        )


class GenerateFields(Fields):
    """The body beside its parameters."""

    inputs: str = Field(min_length=1)
    stream: bool = False
    parameters: dict[str, Any] | None = None


def parse_body(body: dict[str, Any]) -> tuple[GenerateFields, Parameters, tuple[str, ...]]:
    """Return the body's fields, its parameters, and the names that nobody here knows.

    Raises:
        InvalidRequestError: A value cannot be honoured; ``param`` names it.
    """
    if body.get("inputs") == "":
        raise InvalidRequestError("`inputs` cannot be empty", param="inputs")
    fields, ignored = parse_fields(GenerateFields, body, _UNSUPPORTED)
    if fields.parameters is None:
        # TGI's own default: without parameters it samples, with any it does not.
        return fields, Parameters(do_sample=True), ignored
    parameters, more = parse_fields(
        Parameters, fields.parameters, UNSUPPORTED_PARAMETERS, prefix="parameters."
    )
    return fields, parameters, ignored + more
