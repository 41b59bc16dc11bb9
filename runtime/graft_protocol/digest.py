r"""Content identity: the digest of a canonical manifest of files.

The manifest has one line per file, ``<path> <size> <sha256 hex>\n``, sorted by path; the digest is
``sha256:`` and the hex SHA-256 of those bytes. The same files give the same digest wherever they
lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
TEMPLATE_FILE = "chat_template.jinja"
"""A chat template, at the top of a model's or an adapter's folder."""
SHORT_DIGEST_LENGTH = 12
"""Hex digits of a digest that a revision name shows."""


class FileRecord(NamedTuple):
    """One file of a manifest: relative path with ``/``, size in bytes, SHA-256 as hex."""

    path: str
    size: int
    sha256: str


def canonical_manifest(files: Iterable[FileRecord]) -> bytes:
    """Return the manifest's bytes; the order in which files are given does not matter."""
    lines = sorted(files)
    return "".join(f"{file.path} {file.size} {file.sha256}\n" for file in lines).encode()


def manifest_digest(files: Iterable[FileRecord]) -> str:
    """Return the digest ``sha256:<hex>`` of the canonical manifest."""
    return "sha256:" + hashlib.sha256(canonical_manifest(files)).hexdigest()


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is a full digest as `manifest_digest` writes it."""
    return re.fullmatch(DIGEST_PATTERN, text) is not None


def digest_bytes(digest: str) -> bytes:
    """Return the 32 bytes of a digest ``sha256:<hex>``.

    Raises:
        ValueError: It is none.
    """
    return bytes.fromhex(digest.removeprefix("sha256:"))


def short_digest(digest: str) -> str:
    """Return the digits of a digest that name a revision."""
    return digest.removeprefix("sha256:")[:SHORT_DIGEST_LENGTH]


def content_hash(data: bytes) -> str:
    """Return a short hash (16 hex digits) for change detection, never for identity of weights."""
    return hashlib.sha256(data).hexdigest()[:16]


def is_adapter_file(path: str, *, with_template: bool = False) -> bool:
    """Tell whether a file at an adapter's top level belongs to its identity.

    The config and the safetensors weights do; tokenizers and readme files beside them are never
    loaded and so never change what is served.

    Args:
        path: Relative to the adapter's folder.
        with_template: Whether the adapter is served with its own chat template, which then belongs
            to what is served, too.
    """
    if with_template and path == TEMPLATE_FILE:
        return True
    return path == "adapter_config.json" or ("/" not in path and path.endswith(".safetensors"))
