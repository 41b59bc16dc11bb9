"""Copy a set of files from a source into a folder: in parts, several at once, hashed on the way.

Large files are read in parts, so that one stream's speed is not the limit and a download that broke
off goes on with the parts that are missing. `fetch.py` decides what to do with the result.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

from graft_protocol.digest import FileRecord
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.disk_errors import disk_errors
from graft_runtime.sources.partial import Journal, Part

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

PART_BYTES = 64 << 20
_HASH_CHUNK_BYTES = 1 << 22


class Transfer:
    """One attempt."""

    def __init__(
        self,
        source: Source,
        files: Sequence[SourceFile],
        streams: AbstractAsyncContextManager[object],
        on_progress: Progress,
    ) -> None:
        self._source = source
        self._files = files
        self._streams = streams
        self._on_progress = on_progress
        self._done_bytes = 0
        self.total_bytes = sum(file.size for file in files)

    @property
    def is_long(self) -> bool:
        """Whether it may break off with something done that is worth keeping."""
        return self.total_bytes > PART_BYTES

    async def run(self, folder: Path, journal: Journal) -> tuple[FileRecord, ...]:
        """Copy what the journal does not have yet; the first failure ends the others.

        Raises:
            ReasonedError: What the source or the disk says.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._copy(file, folder, journal)) for file in self._files
                ]
        except* ReasonedError as failures:
            first = failures.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        return tuple(sorted(task.result() for task in tasks))

    async def _copy(self, file: SourceFile, folder: Path, journal: Journal) -> FileRecord:
        sink = _Sink(folder / file.name)
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    (part, group.create_task(self._bring(file, part, sink, journal)))
                    for part in parts_of(file, in_parts=self._source.reads_parts)
                ]
                for part, task in parts:
                    if not await task:
                        # It came out of order, or in an earlier attempt: the disk has it.
                        await asyncio.to_thread(sink.hash_part, part)
            return FileRecord(file.name, file.size, await asyncio.to_thread(sink.finish))
        finally:
            sink.close()

    async def _bring(self, file: SourceFile, part: Part, sink: _Sink, journal: Journal) -> bool:
        """Have one part on disk; return whether it was hashed while it came."""
        if part in journal.parts:
            self._count(part.length)
            return False
        async with self._streams:
            is_hashed = part.offset == 0
            offset = part.offset
            async with aclosing(self._source.read(file, part.offset, part.length)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(sink.write, chunk, offset, is_hashed=is_hashed)
                    offset += len(chunk)
                    self._count(len(chunk))
        if journal.is_kept:
            await asyncio.to_thread(sink.sync)
            await asyncio.to_thread(journal.add, part)
        return is_hashed

    def _count(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._on_progress(self._done_bytes, self.total_bytes)


def parts_of(file: SourceFile, *, in_parts: bool = True) -> list[Part]:
    """Cut a file into the parts that are read one by one; an empty file is one part."""
    if not in_parts:
        return [Part(file.name, 0, file.size)]
    starts = range(0, max(file.size, 1), PART_BYTES)
    return [Part(file.name, start, min(PART_BYTES, file.size - start)) for start in starts]


class _Sink:
    """A file that is written in parts, and its hash."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_errors():
            self._descriptor = os.open(path, flags, 0o600)
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes, offset: int, *, is_hashed: bool) -> None:
        """Write bytes to their place."""
        if is_hashed:
            self._digest.update(chunk)
        left = memoryview(chunk)
        with disk_errors():
            while left:
                written = os.pwrite(self._descriptor, left, offset)
                left, offset = left[written:], offset + written

    def hash_part(self, part: Part) -> None:
        """Read a part back into the hash; all before it are in already."""
        offset, end = part.offset, part.offset + part.length
        with disk_errors():
            while offset < end:
                chunk = os.pread(self._descriptor, min(_HASH_CHUNK_BYTES, end - offset), offset)
                if not chunk:
                    break  # a damaged earlier attempt: the hash will tell
                self._digest.update(chunk)
                offset += len(chunk)

    def sync(self) -> None:
        """Wait until the disk has everything written so far."""
        with disk_errors():
            os.fdatasync(self._descriptor)

    def finish(self) -> str:
        """Wait until the disk has everything; return the SHA-256 as hex."""
        with disk_errors():
            os.fsync(self._descriptor)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
