"""What an object store's client raises, as reasons. Called by `object_store.py` alone."""

from __future__ import annotations

import re

from obstore.exceptions import (
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_BY_STATUS = {
    "401": Reason.SOURCE_FORBIDDEN,
    "403": Reason.SOURCE_FORBIDDEN,
    "404": Reason.SOURCE_NOT_FOUND,
    "412": Reason.SOURCE_CHANGED,
    "416": Reason.SOURCE_CHANGED,
}
_BY_CODE = {
    "ExpiredToken": Reason.SOURCE_FORBIDDEN,
    "InvalidToken": Reason.SOURCE_FORBIDDEN,
    "AuthorizationHeaderMalformed": Reason.SOURCE_FORBIDDEN,
    "PermanentRedirect": Reason.SOURCE_FORBIDDEN,
}
_SENTENCES = {
    Reason.SOURCE_NOT_FOUND: "does not exist",
    Reason.SOURCE_FORBIDDEN: "was refused by the object store",
    Reason.SOURCE_CHANGED: "changed while being read",
    Reason.UNSAFE_PATH: "holds a key that is no plain path",
    Reason.SOURCE_UNAVAILABLE: "cannot be read: the object store does not answer",
}


def translate(error: Exception, what: str) -> ReasonedError:
    """Keep the store's status and code, and nothing else of a text that others write."""
    reason = _reason(error)
    text = str(error)
    found = [match[1] for match in (_STATUS.search(text), _CODE.search(text)) if match]
    detail = f" ({' '.join(found)})" if found else ""
    return ReasonedError(reason, f"{what} {_SENTENCES[reason]}{detail}")


def is_broken_stream(error: Exception) -> bool:
    """Tell a connection that broke, which is taken up again, from one that stalls."""
    return _reason(error) is Reason.SOURCE_UNAVAILABLE and not isinstance(error, TimeoutError)


def _reason(error: Exception) -> Reason:
    if isinstance(error, FileNotFoundError):
        return Reason.SOURCE_NOT_FOUND
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Reason.SOURCE_FORBIDDEN
    if isinstance(error, PreconditionError):
        return Reason.SOURCE_CHANGED
    if isinstance(error, InvalidPathError):
        return Reason.UNSAFE_PATH
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if code is not None and code[1] in _BY_CODE:
        return _BY_CODE[code[1]]
    return _BY_STATUS.get(status[1] if status else "", Reason.SOURCE_UNAVAILABLE)
