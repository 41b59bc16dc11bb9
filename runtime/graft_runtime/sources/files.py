"""A folder of this machine as a source: ``file://`` and, below a mounted claim, ``pvc://``.

Reads regular files directly in the folder and nothing else: no symlinks, pipes or devices. Below a
claim no part of the way may be a symlink either, so nothing outside it can be reached.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import CHUNK_BYTES, MAX_LISTED, SourceFile

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = _READ_FLAGS | os.O_DIRECTORY
# A pipe without a writer would block an ordinary open for ever.
_FILE_FLAGS = _READ_FLAGS | os.O_NONBLOCK


class FileSource:
    """One folder of the local file system."""

    def __init__(self, root: Path, uri: str | None = None, path: str | None = None) -> None:
        self._root = root
        # A mounted claim's own name may be a link, made by whoever made the pod.
        self._root_flags = _FOLDER_FLAGS if path is None else _FOLDER_FLAGS & ~os.O_NOFOLLOW
        self._parts = tuple(path.split("/")) if path else ()
        self._uri = f"file://{root}" if uri is None else uri

    @property
    def uri(self) -> str:
        """Where this is, for messages."""
        return self._uri

    @property
    def reads_parts(self) -> bool:
        """Always."""
        return True

    async def list_files(self) -> list[SourceFile]:
        """Return the folder's regular files; other kinds of entries are refused by name."""
        return await asyncio.to_thread(self._list)

    async def read(
        self, file: SourceFile, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield bytes of one file; a file that changes meanwhile raises SourceChanged."""
        end = file.size if length is None else offset + length
        descriptor = await asyncio.to_thread(self._open, file.name)
        try:
            while offset < end:
                self._check_unchanged(descriptor, file)
                size = min(CHUNK_BYTES, end - offset)
                chunk = await asyncio.to_thread(os.pread, descriptor, size, offset)
                if not chunk:
                    raise _error(Reason.SOURCE_CHANGED, f"{self.uri}/{file.name} became shorter")
                offset += len(chunk)
                yield chunk
            self._check_unchanged(descriptor, file)
        finally:
            os.close(descriptor)

    async def aclose(self) -> None:
        """Do nothing: no file stays open."""

    def _list(self) -> list[SourceFile]:
        try:
            with self._folder() as folder, os.scandir(folder) as entries:
                found = [self._describe(entry) for entry in entries if not _is_folder(entry)]
        except OSError as error:
            raise self._translate(error, "") from error
        if len(found) > MAX_LISTED:
            raise _error(Reason.TOO_LARGE, f"{self.uri} holds more than {MAX_LISTED} files")
        return sorted(found)

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """Open the folder, one part of the way after the other."""
        descriptor = os.open(self._root, self._root_flags)
        try:
            for part in self._parts:
                below = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _describe(self, entry: os.DirEntry[str]) -> SourceFile:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise _error(Reason.UNSAFE_PATH, f"{self.uri}/{entry.name} is not a regular file")
        return SourceFile(entry.name, status.st_size, _etag(status))

    def _open(self, name: str) -> int:
        try:
            with self._folder() as folder:
                descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        except OSError as error:
            raise self._translate(error, f"/{name}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _error(Reason.UNSAFE_PATH, f"{self.uri}/{name} is not a regular file")
        return descriptor

    def _check_unchanged(self, descriptor: int, file: SourceFile) -> None:
        if _etag(os.fstat(descriptor)) != file.etag:
            raise _error(Reason.SOURCE_CHANGED, f"{self.uri}/{file.name} changed while being read")

    def _translate(self, error: OSError, suffix: str) -> ReasonedError:
        where = f"{self.uri}{suffix}"
        if isinstance(error, FileNotFoundError):
            return _error(Reason.SOURCE_NOT_FOUND, f"{where} does not exist")
        if isinstance(error, PermissionError):
            return _error(Reason.SOURCE_FORBIDDEN, f"{where} may not be read")
        if isinstance(error, NotADirectoryError) or error.errno in _SYMLINK_ERRNOS:
            return _error(Reason.UNSAFE_PATH, f"{where} is a link or not a folder")
        return _error(Reason.SOURCE_UNAVAILABLE, f"{where}: {error.strerror}")


_SYMLINK_ERRNOS = frozenset({errno.ELOOP, errno.ENXIO})
"""ELOOP: a symlink where none may be. ENXIO: a socket or a device without driver."""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _error(reason: Reason, message: str) -> ReasonedError:
    return ReasonedError(reason, message)
