"""Puts contents into a disk cache without a source."""

from hashlib import sha256

from graft_protocol.digest import FileRecord
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache


def records_of(files: dict[str, bytes]) -> tuple[FileRecord, ...]:
    """Describe files as a manifest does."""
    return tuple(
        FileRecord(name, len(body), sha256(body).hexdigest())
        for name, body in sorted(files.items())
    )


def put(cache: DiskCache, files: dict[str, bytes], kind: Kind = Kind.ADAPTER) -> CacheEntry:
    """Gather and publish files; the entry comes back pinned."""
    with cache.staging(sum(map(len, files.values()))) as staging:
        for name, body in files.items():
            (staging.files_dir / name).write_bytes(body)
        return cache.publish(staging, kind, records_of(files))
