"""What lay beside a cached content, as its entry remembers it."""

import logging
import os
from pathlib import Path

import pytest

from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.beside import Beside, tell_beside
from graft_runtime.sources.cache_entry import CacheEntry
from graft_runtime.sources.disk_cache import DiskCache
from tests.support.cached import put

FILES = {"x": b"1"}


@pytest.fixture
def entry(tmp_path: Path) -> CacheEntry:
    """Make an entry as those were before neighbours were noted."""
    return put(DiskCache(tmp_path, 10_000), FILES)


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def left(*names: str) -> Beside:
    listed = [SourceFile(name, 1, None) for name in ("x", *names)]
    return Beside.of("s3://b/a", listed, listed[:1])


def test_an_entry_without_a_note_loads_and_tells_nothing(
    entry: CacheEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = CacheEntry.open(entry.path)
    assert found is not None
    tell_beside(found)
    assert caplog.records == []


@pytest.mark.parametrize(
    "note", [b"", b"{", b"\xff", b"[]", b'{"source": 1, "ignored": [], "num_ignored": 1}']
)
def test_a_damaged_note_is_passed_over(
    entry: CacheEntry, caplog: pytest.LogCaptureFixture, note: bytes
) -> None:
    (entry.path / "beside").write_bytes(note)
    assert CacheEntry.open(entry.path) is not None
    tell_beside(entry)
    assert caplog.records == []


def test_names_that_are_no_utf8_are_kept_as_they_are(
    entry: CacheEntry, caplog: pytest.LogCaptureFixture
) -> None:
    beside = left(os.fsdecode(b"\xff\xfe"), "ä", "a\nb")
    beside.tell()
    beside.write(entry.path)
    tell_beside(entry)
    first, second = (vars(record) for record in caplog.records)
    assert first["ignored"] == second["ignored"] == ["a\nb", "ä", os.fsdecode(b"\xff\xfe")]


def test_a_download_that_is_taken_up_again_forgets_the_neighbours_of_the_attempt_before(
    entry: CacheEntry, caplog: pytest.LogCaptureFixture
) -> None:
    left("README.md").write(entry.path)
    left().write(entry.path)
    tell_beside(entry)
    assert caplog.records == []


def test_a_disk_that_refuses_costs_the_note_alone(tmp_path: Path, entry: CacheEntry) -> None:
    (entry.path / "beside").mkdir()
    (tmp_path / "staged").mkdir()
    left("README.md").write(entry.path)
    left("README.md").settle(tmp_path / "staged", entry)
    assert entry.is_intact()
