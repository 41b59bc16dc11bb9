"""What is remembered of commits: for as long as the cache holds what they hold, and no longer."""

import asyncio
import threading
from pathlib import Path

import pytest

from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.pins import Pins
from tests.support.cached import put

DEADLINE_SECONDS = 20


def commit(number: int) -> str:
    return f"hf://org/repo@{number:040x}/a"


def content(number: int) -> dict[str, bytes]:
    return {"x": number.to_bytes(4, "big") * 250}


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path, 2_500)


@pytest.fixture
def pins(cache: DiskCache, tmp_path: Path) -> Pins:
    return Pins(tmp_path, cache)


async def read(cache: DiskCache, pins: Pins, number: int, kind: Kind = Kind.ADAPTER) -> CacheEntry:
    """Put a content into the cache, as if a commit had been read; it comes back open."""
    entry = put(cache, content(number), kind)
    await pins.remember(kind, commit(number), entry.digest)
    return entry


async def test_what_the_cache_holds_stays_remembered_and_what_was_evicted_does_not(
    cache: DiskCache, pins: Pins, tmp_path: Path
) -> None:
    model = await read(cache, pins, 1, Kind.MODEL)
    await pins.remember(Kind.MODEL, commit(7), model.digest, choice="template")
    for number in (2, 3):
        (await read(cache, pins, number)).close()
    digests = [pins.digest_of(Kind.ADAPTER, commit(number)) for number in (2, 3)]
    assert [digest is not None and cache.holds(digest) for digest in digests] == [False, True]
    # The next process does it at its start.
    after = Pins(tmp_path, cache)
    await after.sweep()
    assert after.digest_of(Kind.MODEL, commit(1)) == model.digest
    assert after.digest_of(Kind.MODEL, commit(7), choice="template") == model.digest
    assert [after.digest_of(Kind.ADAPTER, commit(number)) for number in (2, 3)] == [
        None,
        digests[1],
    ]
    assert len(list((tmp_path / "pins").iterdir())) == 3


async def test_damaged_ones_and_drafts_of_the_dead_are_swept(
    cache: DiskCache, pins: Pins, tmp_path: Path
) -> None:
    entry = await read(cache, pins, 1)
    (whole,) = (tmp_path / "pins").iterdir()
    for name, body in {"a": b"sha256:", "b": b"\xff", "c.new": entry.digest.encode()}.items():
        (tmp_path / "pins" / name).write_bytes(body)
    await pins.sweep()
    assert list((tmp_path / "pins").iterdir()) == [whole]


async def test_a_thing_that_cannot_be_removed_does_not_keep_the_others(
    cache: DiskCache, pins: Pins, tmp_path: Path
) -> None:
    (await read(cache, pins, 1)).close()
    cache.evict(Kind.ADAPTER, pins.digest_of(Kind.ADAPTER, commit(1)) or "")
    for name in ("0", "folder", "z"):
        (tmp_path / "pins" / name).mkdir()
    await pins.sweep()
    assert {path.name for path in (tmp_path / "pins").iterdir()} == {"0", "folder", "z"}


async def test_nothing_is_swept_where_nothing_was_remembered(pins: Pins, tmp_path: Path) -> None:
    await pins.sweep()
    assert not (tmp_path / "pins").exists()


async def test_a_process_that_reads_commit_after_commit_keeps_a_bounded_number(
    cache: DiskCache, pins: Pins, tmp_path: Path
) -> None:
    model = await read(cache, pins, 0, Kind.MODEL)
    most = 0
    for number in range(1, 300):
        (await read(cache, pins, number)).close()
        most = max(most, len(list((tmp_path / "pins").iterdir())))
    assert most < 80
    assert pins.digest_of(Kind.MODEL, commit(0)) == model.digest


class HeldUpCache(DiskCache):
    """A cache whose look for a content lasts until it is told to end."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, 2_500)
        self.looked = threading.Event()
        self.go_on = threading.Event()

    def holds(self, digest: str) -> bool:
        found = super().holds(digest)
        self.looked.set()
        assert self.go_on.wait(DEADLINE_SECONDS)
        return found


async def test_what_comes_back_while_another_process_sweeps_stays_remembered(
    cache: DiskCache, pins: Pins, tmp_path: Path
) -> None:
    gone = await read(cache, pins, 1)
    gone.close()
    cache.evict(Kind.ADAPTER, gone.digest)
    held_up = HeldUpCache(tmp_path)
    sweeping = threading.Thread(target=lambda: asyncio.run(Pins(tmp_path, held_up).sweep()))
    sweeping.start()
    assert await asyncio.to_thread(held_up.looked.wait, DEADLINE_SECONDS)
    # The other one has seen that the content is gone, and has not removed what named it yet.
    back = asyncio.create_task(read(cache, pins, 1))
    await asyncio.wait([back], timeout=0.2)
    held_up.go_on.set()
    await asyncio.to_thread(sweeping.join)
    assert (await back).digest == pins.digest_of(Kind.ADAPTER, commit(1))
