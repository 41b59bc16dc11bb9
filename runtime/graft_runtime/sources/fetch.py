"""Bring a content from a source into the disk cache: checked, hashed while it streams, all or none.

Knows neither what the files mean nor which store they come from. The loader calls `fetch`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from graft_protocol.digest import FileRecord, manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache, Staging
from graft_runtime.sources.disk_errors import disk_errors
from graft_runtime.sources.selection import Selection

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Wanted:
    """What to fetch, and within which limits."""

    kind: Kind
    select: Selection
    max_bytes: int
    digest: str | None = None
    """The content that is wanted; None takes what is there."""


async def fetch(
    source: Source, wanted: Wanted, cache: DiskCache, on_progress: Progress
) -> CacheEntry:
    """Return the wanted content, pinned; a cached one without touching the source.

    Raises:
        ReasonedError: ChecksumMismatch, TooLarge, CacheFull, SourceChanged (after one new start),
            TruncatedDownload, or what the source or the selection says.
    """
    if wanted.digest is None:
        return await _download(source, wanted, cache, on_progress)
    entry = cache.open(wanted.kind, wanted.digest)
    if entry is not None:
        return entry
    async with cache.fetch_lock(wanted.kind, wanted.digest):
        # Another task or process may have brought it while this one waited.
        entry = cache.open(wanted.kind, wanted.digest)
        return entry or await _download(source, wanted, cache, on_progress)


async def _download(
    source: Source, wanted: Wanted, cache: DiskCache, on_progress: Progress
) -> CacheEntry:
    try:
        return await _download_once(source, wanted, cache, on_progress)
    except ReasonedError as error:
        if error.reason is not Reason.SOURCE_CHANGED:
            raise
    return await _download_once(source, wanted, cache, on_progress)


async def _download_once(
    source: Source, wanted: Wanted, cache: DiskCache, on_progress: Progress
) -> CacheEntry:
    files = _select(source, wanted, await source.list_files())
    transfer = _Transfer(source, sum(file.size for file in files), on_progress)
    with cache.staging(transfer.total_bytes) as staging:
        records = await transfer.run(files, staging.files_dir)
        mistake = _mistake(source, wanted, files, records)
        if mistake or wanted.digest is None:
            await _check_same(source, wanted, files)
        if mistake:
            raise ReasonedError(Reason.CHECKSUM_MISMATCH, mistake)
        return await _publish(cache, staging, wanted.kind, records)


async def _publish(
    cache: DiskCache, staging: Staging, kind: Kind, records: tuple[FileRecord, ...]
) -> CacheEntry:
    publishing = asyncio.ensure_future(asyncio.to_thread(cache.publish, staging, kind, records))
    try:
        return await asyncio.shield(publishing)
    except asyncio.CancelledError:
        # The thread cannot be stopped, and what it opens must not stay pinned.
        (await publishing).close()
        raise


def _select(source: Source, wanted: Wanted, listed: list[SourceFile]) -> list[SourceFile]:
    try:
        files = wanted.select(listed)
    except ReasonedError as error:
        raise ReasonedError(error.reason, f"{source.uri}: {error.message}") from error
    total = sum(file.size for file in files)
    if total > wanted.max_bytes:
        message = f"{source.uri} holds {total} bytes, {wanted.max_bytes} are allowed"
        raise ReasonedError(Reason.TOO_LARGE, message)
    return files


def _mistake(
    source: Source, wanted: Wanted, files: list[SourceFile], records: tuple[FileRecord, ...]
) -> str:
    """Say how what came differs from what was wanted or promised."""
    promised = {file.name: file.sha256 for file in files}
    for record in records:
        if promised[record.path] not in (None, record.sha256):
            return f"{source.uri}/{record.path} is not the file that the source itself promises"
    found = manifest_digest(records)
    if wanted.digest not in (None, found):
        return f"{source.uri} holds {found}, not {wanted.digest}"
    return ""


async def _check_same(source: Source, wanted: Wanted, files: list[SourceFile]) -> None:
    """Tell a source that changed between two files from one that holds something else."""
    if _select(source, wanted, await source.list_files()) != files:
        message = f"{source.uri} changed while being read"
        raise ReasonedError(Reason.SOURCE_CHANGED, message)


class _Transfer:
    """One attempt to copy a set of files into a folder."""

    def __init__(self, source: Source, total_bytes: int, on_progress: Progress) -> None:
        self._source = source
        self._on_progress = on_progress
        self._done_bytes = 0
        self._slots = asyncio.Semaphore(_FILES_AT_ONCE)
        self.total_bytes = total_bytes

    async def run(self, files: list[SourceFile], folder: Path) -> tuple[FileRecord, ...]:
        """Copy all files; the first failure ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._copy(file, folder)) for file in files]
        except* ReasonedError as failures:
            first = failures.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        return tuple(sorted(task.result() for task in tasks))

    async def _copy(self, file: SourceFile, folder: Path) -> FileRecord:
        async with self._slots:
            with disk_errors():
                sink = _Sink(folder / file.name)
            try:
                async with aclosing(self._source.read(file)) as chunks:
                    async for chunk in chunks:
                        await asyncio.to_thread(sink.write, chunk)
                        self._done_bytes += len(chunk)
                        self._on_progress(self._done_bytes, self.total_bytes)
                return FileRecord(file.name, file.size, await asyncio.to_thread(sink.finish))
            finally:
                sink.close()


class _Sink:
    """A new file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._digest.update(chunk)
        left = memoryview(chunk)
        with disk_errors():
            while left:
                left = left[self._file.write(left) :]

    def finish(self) -> str:
        """Wait until the disk has everything; return the SHA-256 as hex."""
        with disk_errors():
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
