"""Mounted volumes as folders, changed the way the kubelet does: whole, through a `..data` link."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

DATA_LINK = "..data"


def project(folder: Path, files: Mapping[str, bytes], *, mode: int = 0o644) -> bool:
    """Make a folder hold exactly these files; readers see all old ones or all new ones.

    Returns:
        Whether anything changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / DATA_LINK
    if link.is_symlink() and _content(link) == dict(files):
        return False
    old = link.readlink() if link.is_symlink() else None
    version = Path(f"..{uuid.uuid4().hex}")
    _write_version(folder / version, files, mode)
    swap = folder / "..data_tmp"
    swap.unlink(missing_ok=True)
    swap.symlink_to(version)
    swap.replace(link)
    _link_names(folder, files)
    if old is not None:
        shutil.rmtree(folder / old, ignore_errors=True)
    return True


def _content(link: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in link.iterdir()}


def _write_version(version: Path, files: Mapping[str, bytes], mode: int) -> None:
    version.mkdir()
    for name, content in files.items():
        descriptor = os.open(version / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def _link_names(folder: Path, files: Mapping[str, bytes]) -> None:
    present = {path.name for path in folder.iterdir() if not path.name.startswith("..")}
    for name in files.keys() - present:
        (folder / name).symlink_to(Path(DATA_LINK) / name)
    for name in present - files.keys():
        (folder / name).unlink()
