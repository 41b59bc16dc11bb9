"""The port to whatever holds model and adapter files; `fetch.py` reads through it.

A source knows one folder of one store. It knows neither the cache nor what the files mean.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 20
"""Bytes per chunk: large enough that hashing dominates, small enough to notice a slow source."""

MAX_LISTED = 4096
"""Objects looked at under one prefix. A folder with more is no adapter and no model."""


class SourceFile(NamedTuple):
    """One file directly under the source's prefix."""

    name: str
    """The last part of the path; never contains a slash."""
    size: int
    """Bytes."""
    etag: str | None
    """Changes when the content does; reads are pinned to it."""


class Source(Protocol):
    """One folder in a store."""

    @property
    def uri(self) -> str:
        """Where this is, for messages."""

    async def list_files(self) -> list[SourceFile]:
        """Return the files directly under the prefix, never those of a sibling or a subfolder.

        Raises:
            ReasonedError: SourceNotFound, SourceForbidden, SourceUnavailable, UnsafePath, TooLarge.
        """

    def read(self, file: SourceFile) -> AsyncGenerator[bytes, None]:
        """Yield one file's bytes, exactly `SourceFile.size` of them.

        Raises:
            ReasonedError: SourceChanged when the content is no longer the one listed,
                TruncatedDownload when the bytes end early, else as for `list_files`.
        """
