"""The parameters of the Text Generation Inference surface, as TGI and LoRAX clients send them."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field, field_validator

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.server.fields import (
    GREEDY_BELOW,
    Fields,
    Finite,
    ModelName,
    PositiveInt,
    TopP,
    Unsigned64,
    Unsupported,
    check_stops,
    parse_fields,
)
from graft_runtime.server.prompts import draw_seed

UNSUPPORTED_PARAMETERS: Final[Unsupported] = {
    "best_of": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "typical_p": (1,),
    "watermark": (False,),
    "decoder_input_details": (False,),
    "top_n_tokens": (0,),
    "grammar": (),
    "response_format": (),
    "return_k_alternatives": (0,),
    "adapter_source": (),
    "adapter_parameters": (),
    "merged_adapters": (),
    "api_token": (),
    "apply_chat_template": (False,),
}
"""Of TGI and of LoRAX; what a value in brackets asks for happens anyway."""

_UNSUPPORTED: Final[Unsupported] = {"api_token": (), "suffix": ()}


class Parameters(Fields):
    """What is honoured of ``parameters``."""

    max_new_tokens: PositiveInt | None = None
    temperature: Finite | None = Field(default=None, le=100)
    top_k: int | None = Field(default=None, lt=2**31)
    top_p: TopP | None = None
    do_sample: bool = False
    seed: Unsigned64 | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool | None = None
    details: bool = False
    truncate: PositiveInt | None = None
    adapter_id: ModelName | None = None
    ignore_eos_token: bool = False

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
        )

    def sampling(self, *, max_tokens: int) -> Sampling:
        """Return what the engine is told. Every token's log probability belongs to the answer."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if self.samples else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=draw_seed() if self.seed is None else self.seed,
            ignore_eos=self.ignore_eos_token,
            logprobs=True,
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
