"""Which parts of a download that broke off are on disk for good.

A plain list, one line per part, appended after the part itself is safe. What cannot be read back is
fetched again; that the bytes are right is for the digest of the whole to say.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.disk_errors import disk_errors

_LINE = re.compile(r"(\d{1,19}) (\d{1,19}) ([^\n]+)")


class Part(NamedTuple):
    """Bytes of one file."""

    name: str
    offset: int
    length: int


class Journal:
    """The list of one download."""

    def __init__(self, path: Path | None) -> None:
        """Read the list; None keeps none, for a download that is not taken up again."""
        self._path = path
        self.parts = frozenset(_read(path)) if path is not None else frozenset()

    @property
    def is_kept(self) -> bool:
        """Whether the download can be taken up again."""
        return self._path is not None

    def add(self, part: Part) -> None:
        """Note a part that is safely on disk."""
        if self._path is None:
            return
        line = f"{part.offset} {part.length} {part.name}\n".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with disk_errors():
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, line)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def resume_key(uri: str, files: Iterable[SourceFile]) -> str | None:
    """Name a download by what it brings: only of the very same content is a part worth keeping.

    None where a source cannot say whether its files changed.
    """
    listed = sorted(files)
    if any(file.etag is None for file in listed):
        return None
    text = "\n".join([uri, *(f"{file.size} {file.etag} {file.name}" for file in listed)])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> list[Part]:
    try:
        lines = path.read_text().split("\n")[:-1]  # the last one may be half-written
    except (OSError, UnicodeDecodeError):
        return []
    matches = [_LINE.fullmatch(line) for line in lines]
    return [Part(match[3], int(match[1]), int(match[2])) for match in matches if match]
