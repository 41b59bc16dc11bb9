"""Which files lay beside a content in its source and were left there, told whenever it is taken.

Noted in the content's cache entry, so that a load from the cache tells what the load from the
source told: a cached content alone does not know what it was picked from. `fetch.py` notes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.cache_entry import CacheEntry

_log = logging.getLogger(__name__)

_NOTE = "beside"
_NAMES_TOLD = 20
_NAME_CHARS_TOLD = 80


class Beside(msgspec.Struct, frozen=True):
    """What was left, in bounds."""

    source: str
    """Where the content was read. The same bytes may lie elsewhere too, beside other files."""
    ignored: tuple[str, ...]
    num_ignored: int

    @classmethod
    def of(cls, source: str, listed: Sequence[SourceFile], files: Sequence[SourceFile]) -> Beside:
        """Say what is left if of all listed files some are taken."""
        taken = {file.name for file in files}
        left = sorted(file.name for file in listed if file.name not in taken)
        names = tuple(name[:_NAME_CHARS_TOLD] for name in left[:_NAMES_TOLD])
        return cls(source, names, len(left))

    def tell(self) -> None:
        """Name what is left where it is: whoever misses its effect finds it in the log."""
        if self.num_ignored:
            names = list(self.ignored)
            facts = {"source": self.source, "ignored": names, "num_ignored": self.num_ignored}
            _log.info("files beside it are not loaded", extra=facts)

    def write(self, staged: Path) -> None:
        """Note it in a folder that is about to be published; a disk that refuses costs the note."""
        note = staged / _NOTE
        with suppress(OSError):
            note.unlink(missing_ok=True)  # of an attempt before, which met other neighbours
            if self.num_ignored:
                # Not msgspec: names on a disk need not be UTF-8.
                note.write_text(json.dumps(msgspec.structs.asdict(self)))

    def settle(self, staged: Path, entry: CacheEntry) -> None:
        """Put it in the place of an older note, where the published content was there already."""
        if not staged.exists():
            return
        with suppress(OSError):
            if self.num_ignored:
                (staged / _NOTE).replace(entry.path / _NOTE)
            else:
                (entry.path / _NOTE).unlink()


def tell_beside(entry: CacheEntry) -> None:
    """Tell of a cached content what was told when it was last read, if that was noted."""
    # An entry may be older than notes are, and nothing depends on one.
    with suppress(OSError, ValueError, msgspec.ValidationError):
        msgspec.convert(json.loads((entry.path / _NOTE).read_text()), Beside).tell()
