"""The port to whatever holds model and adapter files; `fetch.py` reads through it.

A source knows one folder of one store. It knows neither the cache nor what the files mean.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 20
"""Bytes per chunk: large enough that hashing dominates, small enough to notice a slow source."""

MAX_LISTED = 4096
"""Objects looked at under one prefix. A folder with more is no adapter and no model."""

MAX_RESUMES = 3
"""How often one stream is taken up again after the connection broke."""


class SourceFile(NamedTuple):
    """One file directly under the source's prefix."""

    name: str
    """The last part of the path; never contains a slash."""
    size: int
    """Bytes."""
    etag: str | None
    """Changes when the content does; reads are pinned to it."""
    sha256: str | None = None
    """What the source promises the content to be, as hex."""


class Source(Protocol):
    """One folder in a store."""

    @property
    def uri(self) -> str:
        """Where this is, for messages. Names the commit once it is known."""

    @property
    def reads_parts(self) -> bool:
        """Whether a part of a file costs no more than its own bytes; known after `list_files`."""

    async def list_files(self) -> list[SourceFile]:
        """Return the files directly under the prefix, never those of a sibling or a subfolder.

        Raises:
            ReasonedError: SourceNotFound, SourceForbidden, SourceUnavailable, UnsafePath, TooLarge.
        """

    def read(
        self, file: SourceFile, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield bytes of one file: exactly `length` from `offset` on, or all up to its end.

        Raises:
            ReasonedError: SourceChanged when the content is no longer the one listed,
                TruncatedDownload when the bytes end early, else as for `list_files`.
        """

    async def aclose(self) -> None:
        """Let go of connections. Nothing is read afterwards."""


def backoff_seconds(attempt: int) -> float:
    """Return the pause before the n-th new attempt: 0.1, 0.2, 0.4 s ... and at most 2 s.

    Up to a half is taken off by chance: pods that failed together do not come back together.
    """
    return min(0.05 * float(2**attempt), 2.0) * random.uniform(0.5, 1.0)
