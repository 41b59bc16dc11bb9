"""Every error of the runtime, as one tree.

GraftRuntimeError
|-- ReasonedError              a source, artifact or configuration cannot be used
|   |-- DamagedPartsError          what was kept of a download that broke off is not right
|   `-- HttpRefusedError           an HTTP server answered with an error
|-- ShapeError                 a caller inside the runtime passed tensors that disagree
|-- ChildDiedError             the engine or loader process is gone
|-- GrammarError               a form that an output should have cannot be followed
|-- TemplateRefusalError       a chat template does not take the messages
|-- PluginError                a logits processor is absent, broken or refuses its arguments
`-- RequestError               a request gets this as its answer
    |-- InvalidRequestError        400/422: a parameter cannot be honoured
    |   |-- DuplicateAdapterError  400/422: the name is taken
    |   |-- ContextLengthError     400/422: prompt and output do not fit the context
    |   `-- MalformedBodyError     400: the body is not the JSON it should be
    |-- BodyTooLargeError          413: more bytes than allowed
    |-- HeadersTooLargeError       431: more headers than allowed
    |-- MediaTypeError             415: not uncompressed JSON
    |-- SlowBodyError              408: the body did not arrive in time
    |-- SlowReaderError            408: the client does not read its answer
    |-- NoSuchRouteError           404: no such path
    |-- WrongMethodError           405: the path answers another method
    |-- UnauthorizedError          401: no or a wrong token
    |-- ModelNotFoundError         404: absent and forbidden answer alike
    |-- AdapterLoadError         400/424: an adapter asked for by API cannot be loaded
    |-- AdapterUnavailableError    503: known, not usable yet
    |-- NotSupportedError          501: known, and not done here
    |-- OverloadedError            429: the queue is full
    |-- NotReadyError              503: the base model is still on its way
    |-- DrainingError              503: the pod is going down
    |-- DeadlineError              504: took longer than allowed
    `-- EngineDiedError            500/503: the engine failed under this request
"""

from __future__ import annotations

from graft_protocol.reasons import REASONS, Reason


class GraftRuntimeError(Exception):
    """Base of all errors the runtime raises on purpose."""


class ReasonedError(GraftRuntimeError):
    """Something given to the runtime cannot be used; ``reason`` says why, and whether to retry."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def is_terminal(self) -> bool:
        """Whether trying again without a change is pointless."""
        return REASONS[self.reason].retry == "terminal"


class DamagedPartsError(ReasonedError):
    """A download that went on with parts from an earlier attempt is not what it should be."""


class HttpRefusedError(ReasonedError):
    """A server of files answered with an error; ``code`` is the word it gave for it, if any."""

    def __init__(self, reason: Reason, message: str, code: str = "") -> None:
        super().__init__(reason, message)
        self.code = code


class ShapeError(GraftRuntimeError):
    """Shapes or dtypes disagree. A caller's bug; never retried."""


class ChildDiedError(GraftRuntimeError):
    """A child process is gone; the supervisor starts another."""


class GrammarError(GraftRuntimeError):
    """A form that an output should have is malformed, not supported or too large; says which."""


class TemplateRefusalError(GraftRuntimeError):
    """A chat template does not take the messages; whoever applied it answers the request."""


class PluginError(GraftRuntimeError):
    """A logits processor is not installed, cannot be loaded, or refuses a request's arguments."""


class RequestError(GraftRuntimeError):
    """A request is refused or fails; each surface turns it into its own error form."""

    code = "internal_error"
    status = 500

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidRequestError(RequestError):
    """A known field has a value that cannot be honoured; ``param`` names it."""

    code = "invalid_value"
    status = 400


class DuplicateAdapterError(InvalidRequestError):
    """An adapter of this name is loaded already."""

    code = "adapter_exists"


class ContextLengthError(InvalidRequestError):
    """Prompt plus output do not fit the model's context or the whole KV pool."""

    code = "context_length_exceeded"


class MalformedBodyError(InvalidRequestError):
    """The body is not JSON, or holds what JSON text must not hold."""

    code = "invalid_json"


class BodyTooLargeError(RequestError):
    """The body has more bytes than allowed; the rest was not read."""

    code = "body_too_large"
    status = 413


class HeadersTooLargeError(RequestError):
    """The request has more headers, or longer ones, than allowed."""

    code = "headers_too_large"
    status = 431


class MediaTypeError(RequestError):
    """The body is not announced as uncompressed JSON."""

    code = "unsupported_media_type"
    status = 415


class SlowReaderError(RequestError):
    """The client does not read its answer. It is seldom told: there is no way to."""

    status = 408
    code = "answer_not_read"


class SlowBodyError(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"
    status = 408


class NoSuchRouteError(RequestError):
    """Nothing answers at this path."""

    code = "not_found"
    status = 404


class WrongMethodError(RequestError):
    """The path exists and answers another method."""

    code = "method_not_allowed"
    status = 405


class UnauthorizedError(RequestError):
    """The token is missing or wrong."""

    code = "unauthorized"
    status = 401


class ModelNotFoundError(RequestError):
    """No model or adapter of that name for this caller."""

    code = "model_not_found"
    status = 404


class AdapterLoadError(RequestError):
    """An adapter that a client asked for by API cannot be loaded; the message begins with why."""

    code = "adapter_load_failed"
    status = 400


class AdapterUnavailableError(RequestError):
    """The adapter is registered but cannot serve yet."""

    code = "adapter_unavailable"
    status = 503


class NotSupportedError(RequestError):
    """The protocol knows this, and this server does not do it."""

    code = "not_supported"
    status = 501


class OverloadedError(RequestError):
    """The queue is full, or what one tenant may have in flight is."""

    code = "overloaded"
    status = 429

    def __init__(
        self, message: str, *, retry_after_seconds: int | None = None, limit: int | None = None
    ) -> None:
        """Remember what to tell the client.

        Args:
            message: The whole sentence.
            retry_after_seconds: When a second try may succeed.
            limit: How many requests there may be at once, if their number is what is full.
        """
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.limit = limit


class NotReadyError(RequestError):
    """The base model is still being fetched or loaded."""

    code = "not_ready"
    status = 503


class DrainingError(RequestError):
    """The pod no longer takes requests."""

    code = "draining"
    status = 503


class DeadlineError(RequestError):
    """The request took longer than allowed."""

    code = "deadline_exceeded"
    status = 504


class EngineDiedError(RequestError):
    """The engine process failed while it held this request."""

    code = "engine_failed"
    status = 503
