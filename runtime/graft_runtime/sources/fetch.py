"""Bring a content from a source into the disk cache: checked, hashed while it streams, all or none.

Knows neither what the files mean nor which store they come from. The loader calls `fetch`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from graft_protocol.digest import FileRecord, manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import DamagedPartsError, ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.beside import Beside, tell_beside
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache, Staging
from graft_runtime.sources.partial import Journal, resume_key
from graft_runtime.sources.selection import Selection
from graft_runtime.sources.transfer import Progress, Transfer

_STREAMS_AT_ONCE = 4


@dataclass(frozen=True)
class Wanted:
    """What to fetch, and within which limits."""

    kind: Kind
    select: Selection
    max_bytes: int
    digest: str | None = None
    """The content that is wanted; None takes what is there."""
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_STREAMS_AT_ONCE))
    """How many parts are read at the same time; shared by all that read from one source."""


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
    entry = open_cached(cache, wanted.kind, wanted.digest)
    if entry is not None:
        return entry
    async with cache.fetch_lock(wanted.kind, wanted.digest):
        # Another task or process may have brought it while this one waited.
        entry = open_cached(cache, wanted.kind, wanted.digest)
        return entry or await _download(source, wanted, cache, on_progress)


def open_cached(cache: DiskCache, kind: Kind, digest: str) -> CacheEntry | None:
    """Return the pinned entry of a content if the cache holds it; tell what a fetch told."""
    entry = cache.open(kind, digest)
    if entry is not None:
        tell_beside(entry)
    return entry


async def _download(
    source: Source, wanted: Wanted, cache: DiskCache, on_progress: Progress
) -> CacheEntry:
    """Download, and start anew once: where the source changed, or kept parts were damaged."""
    try:
        return await _download_once(source, wanted, cache, on_progress)
    except DamagedPartsError:
        pass
    except ReasonedError as error:
        if error.reason is not Reason.SOURCE_CHANGED:
            raise
    return await _download_once(source, wanted, cache, on_progress)


async def _download_once(
    source: Source, wanted: Wanted, cache: DiskCache, on_progress: Progress
) -> CacheEntry:
    listed = await source.list_files()
    files = _select(source, wanted, listed)
    left = Beside.of(source.uri, listed, files)
    left.tell()
    transfer = Transfer(source, files, wanted.streams, on_progress)
    key = resume_key(source.uri, files) if transfer.is_long else None
    with cache.staging(transfer.total_bytes, key) as staging:
        journal = Journal(staging.journal)
        records = await transfer.run(staging.files_dir, journal)
        mistake = _mistake(source, wanted, files, records)
        if mistake or wanted.digest is None:
            await _check_same(source, wanted, files)
        if mistake:
            staging.discard()
            if journal.parts:
                raise DamagedPartsError(Reason.CHECKSUM_MISMATCH, mistake)
            raise ReasonedError(Reason.CHECKSUM_MISMATCH, mistake)
        left.write(staging.path)
        entry = await _publish(cache, staging, wanted.kind, records)
        left.settle(staging.path, entry)
        return entry


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
