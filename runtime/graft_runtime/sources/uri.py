"""Source URIs, taken apart strictly. No I/O.

=========================================  =======================================================
``s3://bucket/prefix``                     S3 and what speaks like it
``gs://bucket/prefix``                     Google Cloud Storage
``az://account/container/prefix``          Azure Blob Storage
``hf://org/repo[@revision][/folder]``      a model hub's repository
``https://host/path/manifest``             a list of files and their hashes, the files beside it
``pvc://claim/folder``                     a volume claim that the pod mounts
``file:///folder``                         a folder of the pod's own file system
=========================================  =======================================================
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args
from urllib.parse import unquote

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

Scheme = Literal["s3", "gs", "az", "hf", "https", "pvc", "file"]

SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
DEFAULT_REVISION = "main"
"""The branch of a hub's repository that is meant where the URI names none."""

_MAX_URI_LENGTH = 2048
_AUTHORITIES = {
    "s3": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"[a-z0-9]{3,24}"),
    "hf": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"),
    "https": re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"),
    "pvc": re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"),
    "file": re.compile(r""),
}
_AUTHORITY_NAMES = {
    "s3": "a bucket name",
    "gs": "a bucket name",
    "az": "the name of a storage account",
    "hf": "the name of an organisation or a user",
    "https": "host[:port]",
    "pvc": "the name of a volume claim",
    "file": "empty: a file URI has no host, file:///folder",
}
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]{1,62}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceUri(NamedTuple):
    """A checked URI."""

    scheme: Scheme
    bucket: str
    """Whatever holds the path: bucket, ``account/container``, ``org/repo``, host or claim. Empty
    for ``file``."""
    path: str
    """Without slashes at its ends; empty means the root."""
    revision: str = ""
    """Branch, tag or commit of a hub's repository; empty for everything else."""

    @property
    def folder(self) -> Path:
        """The absolute folder of a ``file`` URI."""
        return Path("/") / self.path

    @property
    def is_immutable(self) -> bool:
        """Whether the content behind the URI can never be another: it names a commit."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> SourceUri:
        """Return the same place at another revision."""
        return self._replace(revision=revision)

    def __str__(self) -> str:
        revision = "@" + self.revision.replace("/", "%2F") if self.revision else ""
        path = f"/{self.path}" if self.path or not revision else ""
        return f"{self.scheme}://{self.bucket}{revision}{path}"


def parse_uri(uri: str) -> SourceUri:
    """Take a URI apart.

    Raises:
        ReasonedError: SourceForbidden for a scheme that is not known, UnsafePath for anything
            that could mean another place than it shows. The URI has to change.
    """
    name, separator, rest = uri.partition("://")
    scheme = next((known for known in SCHEMES if known == name), None)
    if not separator or scheme is None:
        allowed = ", ".join(f"{known}://" for known in SCHEMES)
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{uri!r}: a source is one of {allowed}")
    if len(uri) > _MAX_URI_LENGTH or not uri.isprintable() or any(mark in uri for mark in "?#\\"):
        raise _unsafe(uri, "query, fragment, backslash and control characters are not allowed")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise _unsafe(uri, "credentials do not belong into a URI")
    if not _AUTHORITIES[scheme].fullmatch(authority) or ".." in authority:
        raise _unsafe(uri, f"{authority!r} is not {_AUTHORITY_NAMES[scheme]}")
    if scheme == "hf":
        return _parse_repository(uri, authority, path)
    if scheme == "az":
        return _parse_container(uri, authority, path)
    if scheme == "file":
        path = unquote(path)
    checked = _checked_path(uri, path)
    if scheme == "https" and not checked:
        raise _unsafe(uri, "an https URI names a manifest: https://host/path/manifest")
    return SourceUri(scheme, authority, checked)


def _parse_container(uri: str, account: str, path: str) -> SourceUri:
    container, _, prefix = path.partition("/")
    if not _CONTAINER.fullmatch(container):
        raise _unsafe(uri, f"{container!r} is not a container: az://account/container/prefix")
    return SourceUri("az", f"{account}/{container}", _checked_path(uri, prefix))


def _parse_repository(uri: str, owner: str, path: str) -> SourceUri:
    head, _, folder = path.partition("/")
    name, at, revision = head.partition("@")
    revision = unquote(revision) if at else DEFAULT_REVISION
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        raise _unsafe(uri, f"{name!r} is not a repository: hf://org/repo@revision")
    if not _REVISION.fullmatch(revision) or _has_odd_part(revision):
        raise _unsafe(uri, f"{revision!r} is not a branch, a tag or a commit")
    return SourceUri("hf", f"{owner}/{name}", _checked_path(uri, folder), revision)


def _checked_path(uri: str, path: str) -> str:
    path = path.removesuffix("/")
    if path and _has_odd_part(path):
        raise _unsafe(uri, "empty, '.' and '..' path segments are not allowed")
    return path


def _has_odd_part(path: str) -> bool:
    return any(part in {"", ".", ".."} or not part.isprintable() for part in path.split("/"))


def _unsafe(uri: str, why: str) -> ReasonedError:
    return ReasonedError(Reason.UNSAFE_PATH, f"{uri!r}: {why}")
