"""What a service lets sources be, as pure text rules that both planes apply.

The operator answers with a condition before anything runs; the runtime asks again before any I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

_ENDS = ("/", "@")
"""What may follow a prefix: the next part of a path, or a hub repository's revision."""


def is_uri_allowed(uri: str, prefixes: Iterable[str]) -> bool:
    """Tell whether a URI lies under one of the prefixes; with none, every URI does.

    A prefix ends at a whole part: ``s3://bucket/team-a`` admits ``s3://bucket/team-a/x`` and never
    ``s3://bucket/team-ab``. ``hf://`` admits all of that kind.
    """
    listed = tuple(prefixes)
    return not listed or any(_is_under(uri, prefix) for prefix in listed)


def https_endpoint(uri: str) -> str | None:
    """Return the endpoint that an ``https`` URI itself names, or None for other kinds."""
    scheme, separator, rest = uri.partition("://")
    return f"https://{rest.partition('/')[0]}" if separator and scheme == "https" else None


def claim_of(uri: str) -> str | None:
    """Return the volume claim that a ``pvc`` URI names, or None for other kinds."""
    scheme, separator, rest = uri.partition("://")
    return rest.partition("/")[0] if separator and scheme == "pvc" else None


def _is_under(uri: str, prefix: str) -> bool:
    if prefix.endswith("://"):
        return uri.startswith(prefix)
    whole = prefix.rstrip("/")
    return uri.rstrip("/") == whole or uri.startswith(tuple(whole + end for end in _ENDS))
