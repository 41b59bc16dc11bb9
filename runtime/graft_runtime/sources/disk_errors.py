"""What a disk says when it refuses, as one reason that is tried again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

_SENTENCES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than the disk takes",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EIO: "the disk fails",
}
_IN_THE_WAY = {
    errno.EEXIST: "it, or a part of its path, is no folder",
    errno.ENOTDIR: "it, or a part of its path, is no folder",
    errno.EPERM: "the folder may not be written",
}
"""What only a folder that is made for the first time can meet."""


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn a full, read-only or failing disk into CacheFull; other errors pass.

    Raises:
        ReasonedError: CacheFull.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _SENTENCES:
            raise
        message = f"the disk cache cannot be written: {_SENTENCES[error.errno]}"
        raise ReasonedError(Reason.CACHE_FULL, message) from error


def unusable(folder: Path, error: OSError) -> ReasonedError:
    """Return what to say of a cache whose folder cannot be used at all, whatever the disk said."""
    sentences = _SENTENCES | _IN_THE_WAY
    said = sentences.get(error.errno or 0, error.strerror or type(error).__name__)
    return ReasonedError(Reason.CACHE_FULL, f"the disk cache {folder} cannot be written: {said}")
