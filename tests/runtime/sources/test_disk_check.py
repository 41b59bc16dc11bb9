"""A disk cache that cannot be used is told of before anything starts."""

import errno
import logging
import os
import resource
import tempfile
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources import disk_check
from graft_runtime.sources.cache_entry import Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.disk_check import check_disk_cache
from tests.support.cached import put


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk_check, "_try_writing", fail)


def refusal_of(folder: Path) -> str:
    with pytest.raises(ReasonedError) as caught:
        check_disk_cache(folder)
    assert caught.value.reason is Reason.CACHE_FULL
    assert str(folder) in caught.value.message
    return caught.value.message


def test_a_folder_that_takes_files_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    check_disk_cache(folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        assert refusal_of(folder).endswith("it, or a part of its path, is no folder")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "x" / "y")
    refusal_of(tmp_path / "link")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "the folder may not be written"),
        (errno.EPERM, "the folder may not be written"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_a_disk_that_takes_no_file_is_told_with_its_reason(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, number)
    assert refusal_of(tmp_path) == f"the disk cache {tmp_path} cannot be written: {said}"


def test_a_disk_that_takes_a_file_and_nothing_into_it_is_full(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ReasonedError) as caught:
            check_disk_cache(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "larger than the disk takes" in caught.value.message


def test_a_cache_that_holds_models_is_served_from_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(DiskCache(tmp_path, 100_000), {"config.json": b"{}"}, Kind.MODEL).close()
    refuse(monkeypatch, errno.EROFS)
    with caplog.at_level(logging.WARNING):
        check_disk_cache(tmp_path)
    assert f"{tmp_path} cannot be written: the disk is read-only" in caplog.text


def test_a_cache_says_which_folder_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ReasonedError) as caught:
        DiskCache(tmp_path / "file" / "cache", 1000)
    assert caught.value.reason is Reason.CACHE_FULL
    assert str(tmp_path / "file" / "cache") in caught.value.message


def test_the_try_goes_to_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    real = tempfile.TemporaryFile

    def note(**options: object) -> object:
        made.append(options["dir"])
        return real(**options)  # type: ignore[call-overload] # passed on as they came

    monkeypatch.setattr(tempfile, "TemporaryFile", note)
    check_disk_cache(tmp_path)
    assert made == [tmp_path]
