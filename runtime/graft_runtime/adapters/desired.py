"""Read the desired set that the operator projects into the pod, shard by shard.

A shard that is missing, unreadable or too new keeps its last good content: a damaged mount must
never unload anything. The pod's loop calls this; it decides nothing about adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from graft_protocol.desired import (
    NUM_SHARDS,
    AdapterEntry,
    MalformedShardError,
    RuntimeTooOldError,
    Shard,
    parse_shard,
    set_hash,
    shard_key,
)
from graft_protocol.reasons import Reason
from graft_protocol.status import ShardReport

_DATA_LINK = "..data"
"""The kubelet's link to the folder in force; it is switched atomically."""

_MAX_SHARD_BYTES = 1 << 21
"""Twice what a ConfigMap can hold."""


@dataclass(frozen=True)
class DesiredSet:
    """The entries in force and how each shard was understood."""

    entries: tuple[AdapterEntry, ...]
    shard_reports: tuple[ShardReport, ...]
    set_hash: str
    complete: bool
    """Whether every shard was good at least once, so that nothing is missing from `entries`."""


class DesiredReader:
    """Keeps the last good content of every shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good: list[Shard | None] = [None] * NUM_SHARDS

    def read(self) -> DesiredSet:
        """Read all shards as they are now."""
        reports = tuple(self._read_shard(index) for index in range(NUM_SHARDS))
        return DesiredSet(
            entries=tuple(entry for shard in self._good if shard for entry in shard.entries),
            shard_reports=reports,
            set_hash=set_hash(report.hash for report in reports),
            complete=all(shard is not None for shard in self._good),
        )

    def _read_shard(self, index: int) -> ShardReport:
        try:
            shard = parse_shard(self._read_text(index))
            if shard.index != index:
                message = f"{shard_key(index)} holds shard {shard.index}"
                raise MalformedShardError(message)
        except RuntimeTooOldError as error:
            return self._keep(index, Reason.RUNTIME_TOO_OLD, str(error))
        except OSError as error:
            return self._keep(index, Reason.MALFORMED_SHARD, f"cannot be read: {error.strerror}")
        except (ValueError, RecursionError) as error:
            return self._keep(index, Reason.MALFORMED_SHARD, str(error))
        self._good[index] = shard
        return ShardReport(hash=shard.hash)

    def _read_text(self, index: int) -> str:
        with (self._folder / shard_key(index)).open("rb") as file:
            raw = file.read(_MAX_SHARD_BYTES + 1)
        if len(raw) > _MAX_SHARD_BYTES:
            message = f"larger than {_MAX_SHARD_BYTES} bytes"
            raise MalformedShardError(message)
        return raw.decode()

    def _keep(self, index: int, reason: Reason, message: str) -> ShardReport:
        good = self._good[index]
        return ShardReport(hash=good.hash if good else "", reason=reason, message=message[:500])


async def watch(folder: Path, *, poll_seconds: float = 0.2) -> AsyncIterator[None]:
    """Yield at once, and then after every change of the folder.

    Polls: sixteen calls of ``stat`` cost 50 microseconds, and the kubelet's own delay is longer.
    A change that comes while the caller works is not missed.
    """
    seen: object = None
    while True:
        found = _fingerprint(folder)
        if found != seen:
            seen = found
            yield
        else:
            await asyncio.sleep(poll_seconds)


def _fingerprint(folder: Path) -> tuple[object, ...]:
    try:
        target = str((folder / _DATA_LINK).readlink())
    except OSError:
        target = ""
    return (target, *(_stamp(folder / shard_key(index)) for index in range(NUM_SHARDS)))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
