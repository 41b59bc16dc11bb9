"""Whether a disk cache can be used at all, asked before a pod starts anything.

Knows nothing of what is wanted from the cache. The command line calls it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from graft_runtime.sources.cache_entry import Kind
from graft_runtime.sources.disk_cache import make_folders
from graft_runtime.sources.disk_errors import unusable

_log = logging.getLogger(__name__)

_PROBE = b"x" * 4096
"""One block: a disk without room takes a file, but nothing into it."""


def check_disk_cache(root: Path) -> None:
    """See that the cache's folder is there and takes a file.

    A disk that does not is let pass where it holds models: they are served from it as they are, and
    what has to be fetched is refused with the disk's reason.

    Raises:
        ReasonedError: CacheFull, naming the folder and what the disk says.
    """
    make_folders(root)
    try:
        _try_writing(root)
    except OSError as error:
        refusal = unusable(root, error)
        if not any((root / Kind.MODEL).iterdir()):
            raise refusal from error
        _log.warning("%s; only what it holds is served", refusal.message)


def _try_writing(root: Path) -> None:
    # It has no name, so that nothing is left behind whatever happens.
    with tempfile.TemporaryFile(dir=root, buffering=0) as file:
        file.write(_PROBE)
        os.fsync(file.fileno())
