"""Who is asking: the API key that came with a request, as its hash and nothing else.

Set where a request comes in, read where a model's name becomes a revision. A context variable,
since every surface lies in between and none of them has a decision to make about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from graft_protocol.desired import key_hash

_BEARER = "bearer "
_caller: ContextVar[str | None] = ContextVar("caller", default=None)


def set_caller(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Note the key in a request's headers or metadata, if there is one.

    Args:
        headers: Names in lower case, and values. `authorization: Bearer ...` or `x-api-key: ...`.
    """
    found: str | None = None
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"authorization" and text[: len(_BEARER)].lower() == _BEARER:
            found = text[len(_BEARER) :].strip()
            break
        if name == b"x-api-key":
            found = text
    _caller.set(key_hash(found) if found else None)


def may_use(access: tuple[str, ...] | None) -> bool:
    """Whether the one who asks has a key that opens something.

    Args:
        access: Hashes of the keys that do; None is open to all.
    """
    return access is None or _caller.get() in access
