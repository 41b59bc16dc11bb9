"""Large files: in parts, several at once, and on with what is missing after a break."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_protocol.digest import manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources import transfer
from graft_runtime.sources.base import Source
from graft_runtime.sources.cache_entry import Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from graft_runtime.sources.fetch import Wanted, fetch
from graft_runtime.sources.partial import Journal, Part
from graft_runtime.sources.selection import adapter_files
from tests.support.cached import records_of
from tests.support.fault_proxy import Fault, FaultProxy, spoil
from tests.support.s3 import S3

PART = 1_000_000
WEIGHTS = bytes(range(251)) * 14_000
"""3.5 MB of bytes that differ from part to part: four parts."""
WEIGHTS_NAME = "adapter_model.safetensors"
FILES = {"adapter_config.json": b"{}", WEIGHTS_NAME: WEIGHTS}
DIGEST = manifest_digest(records_of(FILES))
RANGES = {
    "bytes=0-999999",
    "bytes=1000000-1999999",
    "bytes=2000000-2999999",
    "bytes=3000000-3513999",
}
MISSING = {"bytes=2000000-2999999", "bytes=3000000-3513999"}
"""What is left after two parts."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", PART)


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 20_000_000)


@pytest.fixture
def proxy(s3: S3, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    s3.put(bucket_of(request), {f"a/{name}": body for name, body in FILES.items()})
    with spoil(s3.endpoint) as running:
        yield running


@pytest.fixture
def source(s3: S3, proxy: FaultProxy, request: pytest.FixtureRequest) -> Source:
    credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
    policy = SourcePolicy(
        allowed_endpoints=(proxy.endpoint,), idle_timeout_seconds=20, max_retries=0
    )
    return open_source(f"s3://{bucket_of(request)}/a", credential, policy)


def bucket_of(request: pytest.FixtureRequest) -> str:
    return f"parts-{abs(hash(request.node.name))}"


def wanted(digest: str | None = DIGEST) -> Wanted:
    return Wanted(Kind.ADAPTER, adapter_files, 10**7, digest)


def ignore(done_bytes: int, total_bytes: int) -> None:
    """Take progress without looking."""


def refuse_from(proxy: FaultProxy, number: int, journals: Path | None = None) -> None:
    """Refuse the weights' parts from the n-th request for them on, when those before are safe."""
    lock, seen = threading.Lock(), [0]

    def wait_until_safe() -> None:
        deadline = time.monotonic() + 20
        while journals is not None and time.monotonic() < deadline:
            noted = "".join(path.read_text() for path in journals.glob("*/parts"))
            if noted.count(f"{WEIGHTS_NAME}\n") >= number - 1:
                return
            time.sleep(0.01)

    def plan(path: str) -> Fault | None:
        if not path.endswith(WEIGHTS_NAME):
            return None
        with lock:
            seen[0] += 1
            return Fault(status=403, before=wait_until_safe) if seen[0] >= number else None

    proxy.plan = plan


def asked(proxy: FaultProxy) -> set[str]:
    """Return the parts that were asked for; one may have been asked for and given up at once."""
    return set(filter(None, proxy.ranges))


async def break_off(
    source: Source, proxy: FaultProxy, cache: DiskCache, folder: Path, after: int
) -> None:
    """Let a download end after so many parts are on disk for good."""
    one_by_one = Wanted(Kind.ADAPTER, adapter_files, 10**7, DIGEST, asyncio.Semaphore(1))
    refuse_from(proxy, after + 1, folder / "cache/partial")
    with pytest.raises(ReasonedError) as caught:
        await fetch(source, one_by_one, cache, ignore)
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN
    proxy.plan = lambda path: None
    proxy.requests.clear()
    proxy.ranges.clear()


async def test_parts_are_read_at_the_same_time_and_put_together_in_order(
    source: Source, proxy: FaultProxy, cache: DiskCache
) -> None:
    together = threading.Barrier(4, timeout=20)

    def meet() -> None:
        together.wait()

    proxy.plan = lambda path: Fault(before=meet) if path.endswith(WEIGHTS_NAME) else None
    wish = Wanted(Kind.ADAPTER, adapter_files, 10**7, DIGEST, asyncio.Semaphore(5))
    entry = await fetch(source, wish, cache, ignore)
    assert entry.is_intact()
    assert proxy.gets_of(WEIGHTS_NAME) == 4
    assert asked(proxy) == RANGES
    entry.close()


async def test_no_more_streams_are_open_than_the_source_shall_have(
    source: Source, proxy: FaultProxy, cache: DiskCache
) -> None:
    done = 0
    done_at_request: list[int] = []

    def plan(path: str) -> Fault | None:
        if path.endswith(WEIGHTS_NAME):
            done_at_request.append(done)
        return None

    def report(done_bytes: int, total_bytes: int) -> None:
        nonlocal done
        done = done_bytes

    proxy.plan = plan
    wish = Wanted(Kind.ADAPTER, adapter_files, 10**7, DIGEST, asyncio.Semaphore(1))
    (await fetch(source, wish, cache, report)).close()
    # A part is asked for when the one before it is here as a whole.
    assert len(done_at_request) == 4
    assert all(have >= number * PART for number, have in enumerate(done_at_request))


async def test_a_download_that_broke_off_goes_on_with_what_is_missing(
    source: Source, proxy: FaultProxy, cache: DiskCache, tmp_path: Path
) -> None:
    await break_off(source, proxy, cache, tmp_path, after=2)
    assert list((tmp_path / "cache/adapters").iterdir()) == []
    progress: list[int] = []
    # Another process comes later.
    later = DiskCache(tmp_path / "cache", 20_000_000)
    entry = await fetch(source, wanted(), later, lambda done, total: progress.append(done))
    assert entry.digest == DIGEST
    assert entry.is_intact()
    assert asked(proxy) == MISSING
    assert progress[2] >= 2 * PART, progress[:3]
    assert progress[-1] == len(WEIGHTS) + 2
    assert {path.name for path in entry.path.iterdir()} == {"files", "manifest"}
    assert list((tmp_path / "cache/partial").iterdir()) == []
    entry.close()


async def test_a_kept_part_that_is_damaged_is_fetched_again(
    source: Source, proxy: FaultProxy, cache: DiskCache, tmp_path: Path
) -> None:
    await break_off(source, proxy, cache, tmp_path, after=2)
    (kept,) = (tmp_path / "cache/partial").glob(f"*/files/{WEIGHTS_NAME}")
    with kept.open("r+b") as file:
        file.seek(10)
        file.write(b"damaged")
    entry = await fetch(source, wanted(), cache, ignore)
    assert entry.is_intact()
    assert asked(proxy) == RANGES
    entry.close()


async def test_parts_of_what_changed_meanwhile_are_not_used(
    source: Source,
    proxy: FaultProxy,
    cache: DiskCache,
    s3: S3,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    await break_off(source, proxy, cache, tmp_path, after=2)
    changed = FILES | {WEIGHTS_NAME: WEIGHTS[::-1]}
    s3.put(bucket_of(request), {f"a/{name}": body for name, body in changed.items()})
    entry = await fetch(source, wanted(None), cache, ignore)
    assert entry.digest == manifest_digest(records_of(changed))
    entry.close()


async def test_kept_parts_make_room_before_anything_whole(
    source: Source, proxy: FaultProxy, tmp_path: Path
) -> None:
    cache = DiskCache(tmp_path / "cache", len(WEIGHTS) * 2)
    await break_off(source, proxy, cache, tmp_path, after=3)
    assert len(list((tmp_path / "cache/partial").iterdir())) == 1
    with cache.staging(len(WEIGHTS) + PART):
        assert list((tmp_path / "cache/partial").iterdir()) == []


async def test_parts_that_nobody_came_back_for_are_swept_after_a_day(
    source: Source, proxy: FaultProxy, cache: DiskCache, tmp_path: Path
) -> None:
    await break_off(source, proxy, cache, tmp_path, after=2)
    (kept,) = (tmp_path / "cache/partial").iterdir()
    DiskCache(tmp_path / "cache", 20_000_000)
    assert kept.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(kept, (yesterday, yesterday))
    DiskCache(tmp_path / "cache", 20_000_000)
    assert not kept.exists()


async def test_a_download_that_another_process_is_taking_up_is_left_to_it(
    source: Source, proxy: FaultProxy, cache: DiskCache, tmp_path: Path
) -> None:
    await break_off(source, proxy, cache, tmp_path, after=2)
    (kept,) = (tmp_path / "cache/partial").iterdir()
    with cache.staging(1, kept.name) as held:
        assert held.path == kept
        entry = await fetch(source, wanted(), DiskCache(tmp_path / "cache", 20_000_000), ignore)
    assert entry.is_intact()
    assert asked(proxy) == RANGES
    entry.close()


async def test_what_is_short_leaves_nothing_behind(
    source: Source,
    proxy: FaultProxy,
    cache: DiskCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 10 * PART)
    refuse_from(proxy, 1)
    with pytest.raises(ReasonedError):
        await fetch(source, wanted(), cache, ignore)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "text", ["", "\n", "0 1", "x y z\n", "0 1 half-writ", "\x00\n", "-1 5 name\n"]
)
def test_a_journal_that_cannot_be_read_keeps_no_part(tmp_path: Path, text: str) -> None:
    (tmp_path / "parts").write_text(text)
    assert Journal(tmp_path / "parts").parts == frozenset()


def test_a_journal_keeps_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    for part in (Part("a name", 0, 5), Part("b", 5, 7)):
        Journal(path).add(part)
    with path.open("a") as file:
        file.write("99 1 hal")
    assert Journal(path).parts == {Part("a name", 0, 5), Part("b", 5, 7)}
