"""One content in the disk cache: its files, its manifest, and what was derived from them.

``<root>/<kind>/<sha256 hex>/{manifest,files/...,<derived>}``. An open entry is pinned: it holds a
shared lock on its folder, and eviction takes only folders that nobody holds.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Self

from graft_protocol.digest import FileRecord, canonical_manifest, manifest_digest
from graft_runtime.sources.file_lock import is_still_at, try_lock

MANIFEST = "manifest"
FILES = "files"
_HASH_CHUNK_BYTES = 1 << 22


class Kind(StrEnum):
    """What a content is; each kind has its own folder."""

    MODEL = "models"
    ADAPTER = "adapters"


class CacheEntry:
    """An open, pinned entry. Close it when the content is no longer wanted."""

    def __init__(self, path: Path, descriptor: int, files: tuple[FileRecord, ...]) -> None:
        self.path = path
        self.files = files
        self.digest = manifest_digest(files)
        self.origin: str | None = None
        """Where it was read from just now, with the commit; None for what was here already."""
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Pin the entry at a path, or return None where there is none that is whole."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        # Eviction may have moved the folder away between the open and the lock.
        if not try_lock(descriptor, exclusive=False) or not is_still_at(descriptor, path):
            os.close(descriptor)
            return None
        files = _read_manifest(path)
        if files is None or not _sizes_fit(path, files):
            os.close(descriptor)
            return None
        # The order of eviction. On a read-only disk nothing is evicted either.
        with suppress(OSError):
            os.utime(path)
        return cls(path, descriptor, files)

    @property
    def files_dir(self) -> Path:
        """The folder with the files, named as in the source."""
        return self.path / FILES

    @property
    def bytes(self) -> int:
        """Size of the files, without what was derived from them."""
        return sum(file.size for file in self.files)

    def is_intact(self) -> bool:
        """Hash every file again and compare. Reads everything: call it in a thread."""
        return all(file_sha256(self.files_dir / file.path) == file.sha256 for file in self.files)

    def close(self) -> None:
        """Let go of the entry; it may be evicted from now on. Closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def file_sha256(path: Path) -> str | None:
    """Return a file's SHA-256 as hex, or None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def _read_manifest(path: Path) -> tuple[FileRecord, ...] | None:
    """Return the records if the manifest is the one that the folder's name promises."""
    try:
        raw = (path / MANIFEST).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(raw).hexdigest() != path.name:
        return None
    records = [line.rsplit(" ", 2) for line in raw.decode().splitlines()]
    files = tuple(FileRecord(name, int(size), sha256) for name, size, sha256 in records)
    return files if canonical_manifest(files) == raw else None


def _sizes_fit(path: Path, files: tuple[FileRecord, ...]) -> bool:
    try:
        return all((path / FILES / file.path).stat().st_size == file.size for file in files)
    except OSError:
        return False
