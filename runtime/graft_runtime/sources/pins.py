"""Remembers which content an immutable URI holds, so that it is found again without its source.

Only a URI that names a commit can be remembered: every other one may hold something else tomorrow.
Lives in the disk cache's folder; what is lost there is only looked up again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from graft_protocol.digest import is_digest
from graft_runtime.sources.cache_entry import Kind
from graft_runtime.sources.disk_cache import write_durably
from graft_runtime.sources.uri import parse_uri

_FOLDER = "pins"


class Pins:
    """Digests by URI, one small file each."""

    def __init__(self, cache_dir: Path) -> None:
        self._root = cache_dir / _FOLDER

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

    def remember(self, kind: Kind, uri: str, digest: str, *, choice: str = "") -> None:
        """Keep what an immutable URI holds; a disk that refuses costs only a look-up later."""
        if not parse_uri(uri).is_immutable:
            return
        with suppress(OSError):
            self._root.mkdir(exist_ok=True)
            path = self._path(kind, uri, choice)
            draft = path.with_suffix(".new")
            write_durably(draft, digest.encode())
            draft.replace(path)

    def _path(self, kind: Kind, uri: str, choice: str) -> Path:
        """Name the file by what is wanted, in the URI's one spelling."""
        text = f"{kind} {parse_uri(uri)}" + (f" {choice}" if choice else "")
        return self._root / hashlib.sha256(text.encode()).hexdigest()
