"""Request fields: parsed strictly; what is known but not honoured is refused by name.

Each surface brings its own model and its table of fields it knows and does not do.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graft_runtime.errors import InvalidRequestError
from graft_runtime.text.tokenizer import Tokenizer

MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 64
MAX_STOP_TOKEN_IDS: Final = 64
MAX_NAME_CHARS: Final = 512
"""Longest model name that is looked up."""
MAX_TEMPERATURE: Final = 100.0
GREEDY_BELOW: Final = 1e-5
"""Temperatures below this choose the likeliest token: dividing by them would overflow."""
MAX_IGNORED_NAMES: Final = 20
MAX_CHOICES: Final = 8
"""Answers to one prompt; each becomes a request of its own in the engine."""
MAX_LOGPROBS: Final = 20
"""Likeliest tokens that are told at each place."""
MAX_BIASES: Final = 300
MAX_BAD_WORDS: Final = 64
MAX_ALLOWED: Final = 16_384
MAX_SALT_CHARS: Final = 256
MAX_NAMED_TOKENS: Final = 128
"""Tokens whose log probabilities are asked for by id; vLLM's own limit."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Unsigned64 = Annotated[int, Field(ge=0, lt=2**64)]
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
Temperature = Annotated[Finite, Field(ge=0, le=MAX_TEMPERATURE)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]
TopP = Annotated[Finite, Field(gt=0, le=1)]
MinP = Annotated[Finite, Field(ge=0, le=1)]
Penalty = Annotated[Finite, Field(ge=-2, le=2)]
Repetition = Annotated[Finite, Field(gt=0, le=100)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
NumTop = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
TypicalP = Annotated[Finite, Field(gt=0, le=1)]
ModelName = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
RouteKey = Annotated[str, Field(max_length=MAX_NAME_CHARS)]

Unsupported = Mapping[str, tuple[Any, ...]]
"""Fields that are known and not honoured, each with the values that change nothing anyway."""


class Fields(BaseModel):
    """Base of a body's known fields: no coercion between types.

    Lists without a limit of their own say ``fail_fast``: a fault for each of a million elements
    would take seconds, in which nothing else runs, and only the first is told.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


M = TypeVar("M", bound=Fields)


def parse_fields(
    model: type[M], body: Mapping[str, Any], unsupported: Unsupported, *, prefix: str = ""
) -> tuple[M, tuple[str, ...]]:
    """Return the known fields, and the names of those nobody here knows.

    A null counts as absent, as clients send it so.

    Args:
        model: The known fields.
        body: Parsed JSON.
        unsupported: What is refused by name.
        prefix: Put before names in errors and in the list of ignored ones.

    Raises:
        InvalidRequestError: A value cannot be honoured; ``param`` names it.
    """
    present = {name: value for name, value in body.items() if value is not None}
    for name in present.keys() & unsupported.keys():
        if not _changes_nothing(present[name], unsupported[name]):
            param = f"{prefix}{name}"
            raise InvalidRequestError(f"`{param}` is not supported with this value", param=param)
    try:
        fields = model.model_validate(present)
    except ValidationError as error:
        raise _invalid(error, prefix) from error
    known = model.model_fields.keys() | unsupported.keys()
    return fields, header_safe(f"{prefix}{name}" for name in present if name not in known)


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Name fields in errors as the client did, where one surface is read by way of another.

    Args:
        names: From the names there to the client's.
    """
    try:
        yield
    except InvalidRequestError as error:
        head = re.match(r"\w*", error.param or "")
        known = head[0] if head else ""
        if known in names:
            error.param = names[known]
            error.message = error.message.replace(f"`{known}", f"`{names[known]}")
        raise


def _changes_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Tell whether a value is among the harmless ones; True is not 1 here."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )


def _invalid(error: ValidationError, prefix: str) -> InvalidRequestError:
    """Return the first fault in our own words; the value itself is never repeated."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]
    ).removeprefix(".")
    param = f"{prefix}{path}"
    message = fault["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"`{param}`: {message}", param=param)


def header_safe(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as they may stand in a header: few, short, of harmless characters, in order."""
    safe = (name for name in names if re.fullmatch(r"[A-Za-z0-9_.\-]{1,64}", name))
    # Not `sorted`, which would keep the interpreter to itself: there may be half a million.
    return tuple(heapq.nsmallest(MAX_IGNORED_NAMES, safe))


def check_stops(stops: list[str]) -> tuple[str, ...]:
    """Check stop strings.

    Raises:
        ValueError: Too many, empty or too long; pydantic names the field.
    """
    if len(stops) > MAX_STOPS:
        message = f"at most {MAX_STOPS} stop strings are allowed"
        raise ValueError(message)
    if any(not 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        message = f"a stop string has 1 to {MAX_STOP_CHARS} characters"
        raise ValueError(message)
    return tuple(stops)


def check_token_ids(ids: list[int], tokenizer: Tokenizer, param: str) -> None:
    """Check that ids are tokens of the vocabulary.

    Raises:
        InvalidRequestError: One is not.
    """
    if tokenizer.out_of_range(ids) is not None:
        message = f"`{param}` has a token id outside of 0..{tokenizer.vocab_size - 1}"
        raise InvalidRequestError(message, param=param)
