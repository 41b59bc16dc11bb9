"""Remembers which content an immutable URI holds, so that it is found again without its source.

Only a URI that names a commit can be remembered: every other one may hold something else tomorrow.
Lives in the disk cache's folder; what is lost there is only looked up again. What is remembered of
a content is of use as long as the cache holds it, offline above all, and is forgotten after it.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from pathlib import Path

from graft_protocol.digest import is_digest
from graft_runtime.errors import ReasonedError
from graft_runtime.sources import file_lock
from graft_runtime.sources.cache_entry import Kind
from graft_runtime.sources.disk_cache import DiskCache, write_durably
from graft_runtime.sources.uri import parse_uri

_FOLDER = "pins"
_DRAFT = ".new"
_LOCK = "lock"
_MIN_WRITTEN = 64
"""New ones between two sweeps, at least; else as many as were found to be of use, so that sweeping
costs each new one a bounded number of looks, and at most about half are of none."""


class Pins:
    """Digests by URI, one small file each."""

    def __init__(self, cache_dir: Path, cache: DiskCache) -> None:
        self._root = cache_dir / _FOLDER
        self._cache = cache
        self._kept = 0
        self._written = 0
        """Since the last sweep."""

    def digest_of(self, kind: Kind, uri: str, *, choice: str = "") -> str | None:
        """Return the digest of an immutable URI that was read before, else None.

        Args:
            kind: Of the content.
            uri: Where it was read.
            choice: Which of its files were, where there is more than one choice.

        Raises:
            ReasonedError: The URI is none.
        """
        if not parse_uri(uri).is_immutable:
            return None
        try:
            found = self._path(kind, uri, choice).read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return found if is_digest(found) else None

    async def remember(self, kind: Kind, uri: str, digest: str, *, choice: str = "") -> None:
        """Keep what an immutable URI holds; a disk that refuses costs only a look-up later.

        The caller holds the content open, so that no sweep finds it gone.
        """
        if not parse_uri(uri).is_immutable:
            return
        with suppress(OSError, ReasonedError):
            self._root.mkdir(exist_ok=True)
            path = self._path(kind, uri, choice)
            draft = path.with_suffix(_DRAFT)
            async with file_lock.exclusive(self._root / _LOCK):
                write_durably(draft, digest.encode())
                draft.replace(path)
                self._written += 1
        if self._written > max(_MIN_WRITTEN, self._kept):
            await self.sweep()

    async def sweep(self) -> None:
        """Forget what names nothing in the cache, and drafts; other processes write meanwhile.

        Nobody writes between the look at a content and the removal of what named it, or what was
        just remembered of a content that came back would be lost.
        """
        kept = 0
        with suppress(OSError, ReasonedError):
            async with file_lock.exclusive(self._root / _LOCK):
                for path in list(self._root.iterdir()):
                    # What cannot be read or removed waits for another time.
                    with suppress(OSError):
                        kept += self._keep(path)
                    await asyncio.sleep(0)
                self._kept, self._written = kept, 0

    def _keep(self, path: Path) -> bool:
        """Remove a file if it is of no use; tell whether it is."""
        if path.name == _LOCK:
            return False
        try:
            digest = path.read_text()
        except UnicodeDecodeError:
            digest = ""
        if path.suffix != _DRAFT and is_digest(digest) and self._cache.holds(digest):
            return True
        path.unlink()
        return False

    def _path(self, kind: Kind, uri: str, choice: str) -> Path:
        """Name the file by what is wanted, in the URI's one spelling."""
        text = f"{kind} {parse_uri(uri)}" + (f" {choice}" if choice else "")
        return self._root / hashlib.sha256(text.encode()).hexdigest()
