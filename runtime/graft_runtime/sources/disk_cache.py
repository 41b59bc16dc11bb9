"""The pod's disk cache of models and adapters, keyed by content and bounded in bytes.

Nothing here remembers where a content came from: a URI may hold something else tomorrow. Several
processes, and several pods on one volume, may share a cache.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path

from graft_protocol.digest import FileRecord, canonical_manifest, is_digest, manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources import file_lock
from graft_runtime.sources.cache_entry import FILES, MANIFEST, CacheEntry, Kind
from graft_runtime.sources.disk_errors import disk_errors, unusable

_TMP = "tmp"
_LOCKS = "locks"
_PARTIAL = "partial"
_JOURNAL = "parts"
_PARTIAL_SECONDS = 24 * 3600.0
"""How long a download that broke off waits to be taken up again."""


class Staging:
    """A private folder in which a content is gathered before it gets its name."""

    def __init__(self, path: Path, descriptor: int, *, is_kept: bool = False) -> None:
        self.path = path
        self._is_kept = is_kept
        self._descriptor = descriptor

    @property
    def journal(self) -> Path | None:
        """Where finished parts are noted; None in a folder that is not taken up again."""
        return self.path / _JOURNAL if self._is_kept else None

    @property
    def files_dir(self) -> Path:
        """Where the files go."""
        return self.path / FILES

    def discard(self) -> None:
        """Keep nothing of it for later."""
        self._is_kept = False

    def share(self) -> None:
        """Let others pin the folder, which is about to get its name, but not remove it."""
        self.discard()
        (self.path / _JOURNAL).unlink(missing_ok=True)
        file_lock.try_lock(self._descriptor, exclusive=False)

    def close(self) -> None:
        """Remove what was not published, unless finished parts are worth keeping."""
        if not self._is_kept or not (self.path / _JOURNAL).exists():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


class DiskCache:
    """Entries by digest, the least recently used evicted first. Threads may share one."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Make the folders, and sweep what crashed processes left half-done.

        Raises:
            ReasonedError: CacheFull when the folder cannot be written; says which.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._reserved_bytes = 0
        self._sizes: dict[Path, tuple[int, int]] = {}
        """When an entry's folder last changed, and its bytes then: nothing in it changes without
        its folder, and looking at every file of thousands for each new one takes too long."""
        self._room = threading.Lock()
        make_folders(root)
        try:
            self._sweep()
        except OSError as error:
            raise unusable(root, error) from error

    def open(self, kind: Kind, digest: str) -> CacheEntry | None:
        """Return the pinned entry of a content, or None. Sizes are checked, hashes are not."""
        return CacheEntry.open(self._entry_path(kind, digest))

    def holds(self, digest: str) -> bool:
        """Tell whether a content of any kind lies here, whole or not; that is no use of it."""
        return any(self._entry_path(kind, digest).is_dir() for kind in Kind)

    def fetch_lock(self, kind: Kind, digest: str) -> AbstractAsyncContextManager[None]:
        """Let one task of all processes fetch a content at a time."""
        name = f"{kind}-{self._entry_path(kind, digest).name}"
        return file_lock.exclusive(self._root / _LOCKS / name)

    @contextmanager
    def staging(self, num_bytes: int, resume_key: str | None = None) -> Iterator[Staging]:
        """Make room for a content and a folder to gather it in; leave nothing behind.

        With a key, finished parts are kept for the next one who comes with the same key.

        Raises:
            ReasonedError: CacheFull.
        """
        staging = self._open_partial(resume_key) or self._new_staging()
        try:
            self._reserve(num_bytes)
            try:
                yield staging
            finally:
                with self._room:
                    self._reserved_bytes -= num_bytes
        finally:
            staging.close()

    def publish(self, staging: Staging, kind: Kind, files: tuple[FileRecord, ...]) -> CacheEntry:
        """Give a gathered content its name, all at once, and return it pinned.

        Raises:
            ReasonedError: CacheFull when the disk refuses.
        """
        digest = manifest_digest(files)
        with disk_errors():
            write_durably(staging.path / MANIFEST, canonical_manifest(files))
            _sync_folder(staging.files_dir)
            _sync_folder(staging.path)
            staging.share()
            path = self._entry_path(kind, digest)
            # Open, perhaps clear away a broken one, rename, open.
            for _ in range(3):
                entry = CacheEntry.open(path)
                if entry is not None:
                    return entry
                self._replace(staging.path, path)
        raise ReasonedError(Reason.CACHE_FULL, f"{digest} could not be put into the cache")

    def evict(self, kind: Kind, digest: str) -> None:
        """Remove an entry whatever holds it: its bytes are no longer what they were."""
        self._discard(self._entry_path(kind, digest))

    def used_bytes(self) -> int:
        """Return the bytes of all entries, with what was derived from them."""
        return sum(size for _, _, size in self._entries())

    def _reserve(self, num_bytes: int) -> None:
        """Take room for a content, and evict what is not in use, least recently used first."""
        with self._room:
            self._make_room(num_bytes)
            self._reserved_bytes += num_bytes

    def _make_room(self, num_bytes: int) -> None:
        limit = self._max_bytes - self._reserved_bytes - num_bytes
        entries = [*self._abandoned(), *self._entries()]
        used = sum(size for _, _, size in entries)
        # What can never fit must not cost the others their place.
        for _, path, size in entries if limit >= 0 else ():
            if used <= limit:
                break
            if self._evict_if_unused(path):
                used -= size
        if used > limit:
            message = (
                f"the disk cache has no room for {num_bytes} bytes: "
                f"{used + self._reserved_bytes} of {self._max_bytes} are in use"
            )
            raise ReasonedError(Reason.CACHE_FULL, message)

    def _entry_path(self, kind: Kind, digest: str) -> Path:
        if not is_digest(digest):
            raise ReasonedError(Reason.INVALID_SPEC, f"{digest!r} is not a digest")
        return self._root / kind / digest.removeprefix("sha256:")

    def _entries(self) -> list[tuple[int, Path, int]]:
        """List last use, path and size, oldest use first."""
        found = []
        for kind in Kind:
            for path in (self._root / kind).iterdir():
                # Another process may evict meanwhile.
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, self._size(path, status)))
        self._sizes = {path: self._sizes[path] for _, path, _ in found}
        return sorted(found)

    def _abandoned(self) -> list[tuple[int, Path, int]]:
        """List the downloads that broke off and that nobody has taken up again."""
        found = []
        for path in (self._root / _PARTIAL).iterdir():
            with suppress(FileNotFoundError):
                if not _is_held(path):
                    found.append((path.stat().st_mtime_ns, path, _folder_bytes(path)))
        return sorted(found)

    def _size(self, path: Path, status: os.stat_result) -> int:
        changed, size = self._sizes.get(path, (0, 0))
        if changed != status.st_ctime_ns:
            size = _folder_bytes(path)
            self._sizes[path] = status.st_ctime_ns, size
        return size

    def _evict_if_unused(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if not file_lock.try_lock(descriptor, exclusive=True):
                return False
            if file_lock.is_still_at(descriptor, path):
                self._discard(path)
            return True
        finally:
            os.close(descriptor)

    def _discard(self, path: Path) -> None:
        """Take a folder's name away first, so that no one opens it half-removed."""
        grave = Path(tempfile.mkdtemp(prefix="evicted-", dir=self._root / _TMP))
        try:
            path.rename(grave / "entry")
        except FileNotFoundError:
            pass
        finally:
            shutil.rmtree(grave, ignore_errors=True)

    def _replace(self, staged: Path, path: Path) -> None:
        """Rename into place; a broken entry of that name goes first."""
        try:
            staged.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._discard(path)
        _sync_folder(path.parent)

    def _open_partial(self, key: str | None) -> Staging | None:
        """Take up the download of a key, or begin it; None while another process does."""
        if key is None:
            return None
        path = self._root / _PARTIAL / key
        with disk_errors():
            (path / FILES).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if file_lock.try_lock(descriptor, exclusive=True) and (path / FILES).is_dir():
            os.utime(path)
            return Staging(path, descriptor, is_kept=True)
        os.close(descriptor)
        return None

    def _new_staging(self) -> Staging:
        with disk_errors():
            path = Path(tempfile.mkdtemp(prefix="fetch-", dir=self._root / _TMP))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # The sweep of another process leaves folders alone whose owner lives.
            file_lock.try_lock(descriptor, exclusive=True)
            (path / FILES).mkdir()
        return Staging(path, descriptor)

    def _sweep(self) -> None:
        for path in (self._root / _TMP).iterdir():
            self._sweep_one(path)
        for path in (self._root / _PARTIAL).iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _PARTIAL_SECONDS:
                    self._sweep_one(path)

    def _sweep_one(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            path.unlink(missing_ok=True)
            return
        try:
            if not file_lock.try_lock(descriptor, exclusive=True):
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def make_folders(root: Path) -> None:
    """Make what a cache consists of, as far as it is not there.

    Raises:
        ReasonedError: CacheFull, naming the folder and what the disk says.
    """
    try:
        for name in (*Kind, _TMP, _LOCKS, _PARTIAL):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(root, error) from error


def _is_held(path: Path) -> bool:
    """Whether a task or a process holds a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return not file_lock.try_lock(descriptor, exclusive=True)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folder_bytes(path: Path) -> int:
    return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
