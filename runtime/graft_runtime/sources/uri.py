"""Source URIs, taken apart strictly: ``s3://bucket/prefix`` and ``file:///folder``. No I/O."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

Scheme = Literal["s3", "file"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_MAX_URI_LENGTH = 2048


class SourceUri(NamedTuple):
    """A checked URI."""

    scheme: Scheme
    bucket: str
    """Empty for ``file``."""
    path: str
    """Without slashes at its ends; empty means the bucket's root."""

    @property
    def folder(self) -> Path:
        """The absolute folder of a ``file`` URI."""
        return Path("/") / self.path

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"


def parse_uri(uri: str) -> SourceUri:
    """Take a URI apart.

    Raises:
        ReasonedError: SourceForbidden for a scheme that is not allowed, UnsafePath for anything
            that could mean another place than it shows. The URI has to change.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("s3", "file"):
        allowed = "s3:// and file://"
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{uri!r}: only {allowed} are allowed")
    if len(uri) > _MAX_URI_LENGTH or not uri.isprintable() or any(mark in uri for mark in "?#\\"):
        raise _unsafe(uri, "query, fragment, backslash and control characters are not allowed")
    authority, _, path = rest.partition("/")
    if scheme == "file":
        if authority:
            raise _unsafe(uri, "a file URI has no host: file:///folder")
        path = unquote(path)
        return SourceUri("file", "", _checked_path(uri, path))
    if "@" in authority:
        raise _unsafe(uri, "credentials do not belong into a URI")
    if not _BUCKET.fullmatch(authority) or ".." in authority:
        raise _unsafe(uri, f"{authority!r} is not a bucket name")
    return SourceUri("s3", authority, _checked_path(uri, path))


def _checked_path(uri: str, path: str) -> str:
    path = path.removesuffix("/")
    parts = path.split("/") if path else []
    if any(part in {"", ".", ".."} or not part.isprintable() for part in parts):
        raise _unsafe(uri, "empty, '.' and '..' path segments are not allowed")
    return path


def _unsafe(uri: str, why: str) -> ReasonedError:
    return ReasonedError(Reason.UNSAFE_PATH, f"{uri!r}: {why}")
