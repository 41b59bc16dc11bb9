"""The slot file of a cached adapter: found again if whole, else made from the adapter's files.

It lies inside the adapter's cache entry, so it is pinned and evicted with it, under a name that
says for which layout, dtype and converter it was made. Blocks; the loader calls it in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from graft_protocol.reasons import Reason
from graft_runtime.adapters.convert import CONVERTER_VERSION, slot_bytes, write_slot_file
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.adapters.weights import ServingDtype
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import SlotHeader, layout_hash, pages_for
from graft_runtime.models.base import ModelArch
from graft_runtime.sources.cache_entry import CacheEntry, file_sha256
from graft_runtime.sources.disk_cache import DiskCache, write_durably
from graft_runtime.sources.disk_errors import disk_errors


@dataclass(frozen=True)
class SlotTarget:
    """What slot files are made for."""

    arch: ModelArch
    dtype: ServingDtype
    max_rank: int

    @property
    def file_name(self) -> str:
        """Differs wherever the same adapter would give another file."""
        return f"{layout_hash(self.arch)}-{self.dtype}-v{CONVERTER_VERSION}.slot"


class SlotRecord(msgspec.Struct, frozen=True):
    """What is kept beside a slot file."""

    rank: int
    target_modules: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class PreparedSlot:
    """A slot file that may be given to the engine."""

    path: Path
    record: SlotRecord


def prepare_slot(entry: CacheEntry, target: SlotTarget, cache: DiskCache) -> PreparedSlot | None:
    """Return the slot file of an adapter, or None if the cache's copy of the adapter is damaged.

    Raises:
        ReasonedError: What validation or conversion finds, or CacheFull.
    """
    path = entry.path / target.file_name
    record = _read_record(path)
    if record is None or record.sha256 != file_sha256(path):
        if not entry.is_intact():
            return None
        record = _make(entry, target, cache, path)
    if record.rank > target.max_rank:
        message = f"rank {record.rank} is above the service's maxRank {target.max_rank}"
        raise ReasonedError(Reason.RANK_TOO_LARGE, message)
    return PreparedSlot(path, record)


def _make(entry: CacheEntry, target: SlotTarget, cache: DiskCache, path: Path) -> SlotRecord:
    adapter = validate_adapter(entry.files_dir, target.arch, max_rank=target.max_rank)
    header = SlotHeader(
        digest=entry.digest,
        rank=adapter.rank,
        pages=pages_for(adapter.rank),
        dtype=target.dtype,
        arch=layout_hash(target.arch),
    )
    with cache.staging(slot_bytes(adapter, header)) as staging, disk_errors():
        draft = staging.path / path.name
        write_slot_file(adapter, header, draft)
        sha256 = file_sha256(draft)
        record = SlotRecord(adapter.rank, adapter.target_modules, sha256 or "")
        beside = staging.path / _record_path(path).name
        write_durably(beside, msgspec.json.encode(record))
        # The record last: without it the slot file is made anew.
        draft.replace(path)
        beside.replace(_record_path(path))
    return record


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> SlotRecord | None:
    try:
        return msgspec.json.decode(_record_path(path).read_bytes(), type=SlotRecord)
    except (OSError, msgspec.DecodeError):
        return None
