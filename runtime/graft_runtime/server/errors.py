"""Errors as each family of surfaces writes them.

One mapper per family; what is not a `RequestError` leaves as an opaque 500 with the request's id,
and its details go to the log alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from graft_runtime.errors import (
    AdapterLoadError,
    BodyTooLargeError,
    DrainingError,
    DuplicateAdapterError,
    EngineDiedError,
    InvalidRequestError,
    MalformedBodyError,
    ModelNotFoundError,
    NoSuchRouteError,
    OverloadedError,
    RequestError,
    SlowBodyError,
    UnauthorizedError,
    WrongMethodError,
)

_logger = logging.getLogger(__name__)

Family = Literal["openai", "tgi", "triton", "anthropic"]

_OPENAI_PATHS: Final = frozenset({"/detokenize", "/tokenizer_info", "/version", "/load"})
"""Of vLLM, beside ``/v1``."""

_OPENAI_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestEntityTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "TooManyRequestsError",
    431: "RequestHeaderFieldsTooLargeError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
RETRIED: Final = (429, 503)
"""Statuses of what may succeed when it is tried again later."""
_CLOSING: Final = (BodyTooLargeError, SlowBodyError, DrainingError)
"""After these the connection is of no more use."""


@dataclass(frozen=True)
class WireError:
    """An error in the form of one family."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return it as a whole answer."""
        return Response(
            msgspec.json.encode(self.body),
            self.status,
            headers=dict(self.headers),
            media_type="application/json",
        )


def family_of(path: str) -> Family:
    """Return whose error form a path speaks, where its body does not decide."""
    if path == "/v2" or path.startswith("/v2/"):
        return "triton"
    if path.startswith("/v1/messages"):
        return "anthropic"
    is_openai = path in _OPENAI_PATHS or path.startswith(("/v1/", "/internal/"))
    return "openai" if is_openai else "tgi"


def wire_error(family: Family, error: RequestError) -> WireError:
    """Return an error in a family's form."""
    match family:
        case "openai":
            return openai_error(error)
        case "anthropic":
            return anthropic_error(error)
        case "tgi":
            return tgi_error(error)
        case "triton":
            return triton_error(error)


def openai_error(error: RequestError) -> WireError:
    """Return OpenAI's nested form, with the flat keys that older clients of vLLM read beside it."""
    fields = {
        "message": error.message,
        "type": _openai_type(error),
        "param": error.param,
    }
    body = {
        "error": {**fields, "code": error.code},
        "object": "error",
        **fields,
        "code": error.status,
    }
    return WireError(error.status, body, _headers(error))


def _openai_type(error: RequestError) -> str:
    if isinstance(error, DuplicateAdapterError):
        return "InvalidUserInput"  # vLLM's clients look for it
    return _OPENAI_TYPES.get(error.status, "InternalServerError")


def tgi_error(error: RequestError) -> WireError:
    """Return TGI's form: a text and a type, both at the top."""
    status, message, type = error.status, error.message, error.code
    if isinstance(error, MalformedBodyError):
        type = "validation"
    elif isinstance(error, InvalidRequestError):
        status, type = 422, "validation"
        message = f"Input validation error: {message}"
    elif isinstance(error, OverloadedError):
        type, message = "overloaded", "Model is overloaded"
    elif isinstance(error, AdapterLoadError):
        status, type = 424, "generation"  # LoRAX's answer
    elif isinstance(error, EngineDiedError):
        status, type = 424, "generation"
        message = f"Request failed during generation: {message}"
    return WireError(status, {"error": message, "error_type": type}, _headers(error))


def triton_error(error: RequestError) -> WireError:
    """Return Triton's form: a text alone."""
    return WireError(error.status, {"error": error.message}, _headers(error))


def anthropic_error(error: RequestError) -> WireError:
    """Return Anthropic's form, whose type says what to do; ``param`` is part of the message."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    fields = {"type": _ANTHROPIC_TYPES.get(error.status, fallback), "message": error.message}
    return WireError(error.status, {"type": "error", "error": fields}, _headers(error))


def _headers(error: RequestError) -> dict[str, str]:
    headers = {}
    if error.status in RETRIED:
        headers["retry-after"] = str(retry_seconds(error))
    if isinstance(error, OverloadedError):
        headers |= _rate_limit(error)
    if isinstance(error, _CLOSING):
        headers["connection"] = "close"
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return headers


def retry_seconds(error: RequestError) -> int:
    """Return when a client may try again what may succeed then."""
    return error.retry_after_seconds or 1


def _rate_limit(error: OverloadedError) -> dict[str, str]:
    """Return the headers by which OpenAI's clients know a limit."""
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": f"{retry_seconds(error)}s",
    }
    if error.limit is not None:
        headers["x-ratelimit-limit-requests"] = str(error.limit)
    return headers


def as_request_error(error: Exception, request_id: str) -> RequestError:
    """Return what a client may know of an error; log the rest."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException):
        return _routing_error(error)
    _logger.error("request failed", exc_info=error, extra={"request_id": request_id})
    return RequestError(f"internal error; the request's id is {request_id}")


def _routing_error(error: HTTPException) -> RequestError:
    if error.status_code == 405:
        return WrongMethodError("this path answers another method")
    if error.status_code == 404:
        return NoSuchRouteError("no such path")
    return InvalidRequestError("the request cannot be served")


def tgi_cause(error: RequestError) -> Literal["overloaded", "validation", "generation"]:
    """Return TGI's metric label for an error."""
    if isinstance(error, OverloadedError):
        return "overloaded"
    if isinstance(error, InvalidRequestError | ModelNotFoundError) or 400 <= error.status < 500:
        return "validation"
    return "generation"
