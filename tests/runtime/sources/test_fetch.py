import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graft_protocol.digest import manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from graft_runtime.sources.fetch import Wanted, fetch
from graft_runtime.sources.selection import adapter_files, model_files
from tests.support.cached import records_of
from tests.support.fault_proxy import Fault, spoil
from tests.support.s3 import S3

WEIGHTS = b"w" * 2_500_000
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
DIGEST = manifest_digest(records_of(FILES))


def ignore(done_bytes: int, total_bytes: int) -> None:
    """Take progress without looking."""


def adapter(digest: str | None = None, max_bytes: int = 10**7) -> Wanted:
    return Wanted(Kind.ADAPTER, adapter_files, max_bytes, digest)


def source_at(s3: S3, bucket: str, endpoint: str | None = None, prefix: str = "a") -> Source:
    endpoint = endpoint or s3.endpoint
    credential = s3.credential.model_copy(update={"endpoint": endpoint})
    policy = SourcePolicy(allowed_endpoints=(endpoint,), idle_timeout_seconds=5, max_retries=0)
    return open_source(f"s3://{bucket}/{prefix}", credential, policy)


def upload(s3: S3, bucket: str, files: dict[str, bytes] | None = None) -> None:
    s3.put(bucket, {f"a/{name}": body for name, body in (files or FILES).items()})


async def reason_of(fetching: Callable[[], Awaitable[CacheEntry]]) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        await fetching()
    return caught.value.reason


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 20_000_000)


def is_clean(tmp_path: Path) -> bool:
    """Tell whether no attempt left anything under a temporary or a final name."""
    found = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return found == []


async def test_a_content_is_fetched_once_and_then_found(s3: S3, cache: DiskCache) -> None:
    upload(s3, "once", FILES | {"README.md": b"#", "below/x.safetensors": b"x"})
    with spoil(s3.endpoint) as proxy:
        source = source_at(s3, "once", proxy.endpoint)
        first = await fetch(source, adapter(DIGEST), cache, ignore)
        asked = len(proxy.requests)
        second = await fetch(source, adapter(DIGEST), cache, ignore)
        assert len(proxy.requests) == asked
    assert (first.digest, first.bytes) == (DIGEST, len(WEIGHTS) + 2)
    assert second.path == first.path
    assert second.is_intact()


async def test_what_is_left_where_it_is_is_named_in_bounds_and_again_from_the_cache(
    s3: S3, cache: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    others = {f"notes-{number:03}": b"" for number in range(100)} | {"x" * 150: b""}
    upload(s3, "beside", FILES | {"README.md": b"#", "tokenizer.json": b"{}"})
    upload(s3, "crowd", FILES | {"adapter_config.json": b"[]"} | others)
    digests = []
    with caplog.at_level(logging.INFO, logger="graft_runtime.sources.beside"):
        for bucket in ("beside", "crowd"):
            entry = await fetch(source_at(s3, bucket), adapter(), cache, ignore)
            entry.close()
            digests.append(entry.digest)
        few, many = told_in(caplog)
        for digest in digests:
            nowhere = source_at(s3, "nowhere")
            (await fetch(nowhere, adapter(digest), cache, ignore)).close()
    assert (few["source"], few["num_ignored"]) == ("s3://beside/a", 2)
    assert few["ignored"] == ["README.md", "tokenizer.json"]
    assert many["num_ignored"] == 101
    assert len(many["ignored"]) == 20
    assert max(map(len, many["ignored"])) <= 80
    assert told_in(caplog) == [few, many, few, many]


async def test_of_two_places_with_the_same_bytes_the_neighbours_of_the_last_one_read_are_named(
    s3: S3, cache: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    upload(s3, "first", FILES | {"README.md": b"#"})
    upload(s3, "second", FILES | {"optimizer.pt": b"o"})
    upload(s3, "lonely", FILES)
    with caplog.at_level(logging.INFO, logger="graft_runtime.sources.beside"):
        for bucket in ("first", "second", "lonely"):
            (await fetch(source_at(s3, bucket), adapter(), cache, ignore)).close()
            (await fetch(source_at(s3, "nowhere"), adapter(DIGEST), cache, ignore)).close()
    named = [(one["source"], one["ignored"]) for one in told_in(caplog)]
    first, second = ("s3://first/a", ["README.md"]), ("s3://second/a", ["optimizer.pt"])
    assert named == [first, first, second, second]


def told_in(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what was told of neighbours."""
    facts = ("source", "ignored", "num_ignored")
    records = [vars(record) for record in caplog.records if record.name.endswith(".beside")]
    return [{fact: record[fact] for fact in facts} for record in records]


async def test_a_content_without_a_known_digest_is_looked_up_every_time(
    s3: S3, cache: DiskCache
) -> None:
    upload(s3, "mutable")
    before = await fetch(source_at(s3, "mutable"), adapter(), cache, ignore)
    changed = FILES | {"adapter_config.json": b"[]"}
    upload(s3, "mutable", changed)
    after = await fetch(source_at(s3, "mutable"), adapter(), cache, ignore)
    assert before.digest == DIGEST
    assert after.digest == manifest_digest(records_of(changed))


async def test_progress_ends_at_the_whole(s3: S3, cache: DiskCache) -> None:
    upload(s3, "progress")
    seen: list[tuple[int, int]] = []

    def report(done_bytes: int, total_bytes: int) -> None:
        seen.append((done_bytes, total_bytes))

    await fetch(source_at(s3, "progress"), adapter(), cache, report)
    total = len(WEIGHTS) + 2
    assert seen[-1] == (total, total)
    assert sorted(seen) == seen
    assert len(seen) > 2


async def test_other_bytes_than_the_digests_are_refused(
    s3: S3, cache: DiskCache, tmp_path: Path
) -> None:
    upload(s3, "other")
    wanted = adapter("sha256:" + "0" * 64)
    reason = await reason_of(lambda: fetch(source_at(s3, "other"), wanted, cache, ignore))
    assert reason is Reason.CHECKSUM_MISMATCH
    assert is_clean(tmp_path)


async def test_too_many_bytes_are_refused_before_any_is_read(
    s3: S3, cache: DiskCache, tmp_path: Path
) -> None:
    upload(s3, "large")
    with spoil(s3.endpoint) as proxy:
        source = source_at(s3, "large", proxy.endpoint)
        wanted = adapter(max_bytes=2_500_000)
        assert await reason_of(lambda: fetch(source, wanted, cache, ignore)) is Reason.TOO_LARGE
        assert proxy.gets_of(".safetensors") == 0
    assert is_clean(tmp_path)


async def test_an_object_that_grows_under_way_is_not_taken(
    s3: S3, cache: DiskCache, tmp_path: Path
) -> None:
    upload(s3, "grows")
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(append=b"x") if path.endswith(".safetensors") else None
        source = source_at(s3, "grows", proxy.endpoint)
        reason = await reason_of(lambda: fetch(source, adapter(), cache, ignore))
    assert reason is Reason.SOURCE_CHANGED
    assert is_clean(tmp_path)


async def test_a_source_that_changes_once_is_read_again(s3: S3, cache: DiskCache) -> None:
    upload(s3, "changes")
    newer = FILES | {"adapter_model.safetensors": WEIGHTS[::-1] + b"!"}
    waiting = [Fault(before=lambda: upload(s3, "changes", newer))]
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: (
            waiting.pop() if waiting and path.endswith(".safetensors") else None
        )
        entry = await fetch(source_at(s3, "changes", proxy.endpoint), adapter(), cache, ignore)
    assert entry.digest == manifest_digest(records_of(newer))


async def test_files_of_two_versions_are_never_mixed(s3: S3, cache: DiskCache) -> None:
    """The weights are replaced after they were read, while the config is still on its way."""
    upload(s3, "mixed")
    newer = {name: b"[1]" + body for name, body in FILES.items()}
    ended = [Fault(status=404)]
    with spoil(s3.endpoint) as proxy:

        def replace_before_second_listing(path: str) -> Fault | None:
            listings = sum("list-type" in asked for asked in proxy.requests)
            if "list-type" in path and listings == 2 and ended:
                ended.pop()
                upload(s3, "mixed", newer)
            return None

        proxy.plan = replace_before_second_listing
        entry = await fetch(source_at(s3, "mixed", proxy.endpoint), adapter(), cache, ignore)
    assert entry.digest == manifest_digest(records_of(newer))


async def test_a_source_that_keeps_changing_is_given_up(s3: S3, cache: DiskCache) -> None:
    upload(s3, "restless")
    versions = iter(range(100))

    def change() -> None:
        upload(s3, "restless", FILES | {"adapter_config.json": b"%d" % next(versions)})

    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(before=change) if path.endswith(".safetensors") else None
        source = source_at(s3, "restless", proxy.endpoint)
        reason = await reason_of(lambda: fetch(source, adapter(), cache, ignore))
    assert reason is Reason.SOURCE_CHANGED


async def test_a_broken_download_is_never_visible(s3: S3, cache: DiskCache, tmp_path: Path) -> None:
    upload(s3, "broken")
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: (
            Fault(cut_after_bytes=1000) if path.endswith(".safetensors") else None
        )
        source = source_at(s3, "broken", proxy.endpoint)
        reason = await reason_of(lambda: fetch(source, adapter(DIGEST), cache, ignore))
    assert reason is Reason.TRUNCATED_DOWNLOAD
    assert is_clean(tmp_path)


async def test_a_herd_for_one_digest_downloads_it_once(s3: S3, cache: DiskCache) -> None:
    upload(s3, "herd")
    with spoil(s3.endpoint) as proxy:
        source = source_at(s3, "herd", proxy.endpoint)
        entries = await asyncio.gather(
            *(fetch(source, adapter(DIGEST), cache, ignore) for _ in range(12))
        )
        assert proxy.gets_of("adapter_model.safetensors") == 1
    assert {entry.path for entry in entries} == {entries[0].path}


async def test_a_cancelled_fetch_leaves_nothing_and_the_next_one_works(
    s3: S3, cache: DiskCache, tmp_path: Path
) -> None:
    upload(s3, "cancel")
    started = asyncio.Event()
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: (
            Fault(stall_after_bytes=1_500_000) if path.endswith(".safetensors") else None
        )

        def report(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > 1_000_000:
                started.set()

        source = source_at(s3, "cancel", proxy.endpoint)
        fetching = asyncio.create_task(fetch(source, adapter(DIGEST), cache, report))
        async with asyncio.timeout(10):
            await started.wait()
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
    assert fetching.cancelled()
    assert is_clean(tmp_path)
    entry = await fetch(source_at(s3, "cancel"), adapter(DIGEST), cache, ignore)
    assert entry.is_intact()


async def test_a_full_cache_refuses_before_any_byte_is_read(s3: S3, tmp_path: Path) -> None:
    upload(s3, "full")
    small = DiskCache(tmp_path / "cache", 1_000_000)
    reason = await reason_of(lambda: fetch(source_at(s3, "full"), adapter(), small, ignore))
    assert reason is Reason.CACHE_FULL
    assert is_clean(tmp_path)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let the kernel refuse every file beyond 1 MB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
async def test_a_disk_that_fills_up_under_way_is_a_full_cache(
    s3: S3, cache: DiskCache, tmp_path: Path
) -> None:
    upload(s3, "fills")
    reason = await reason_of(lambda: fetch(source_at(s3, "fills"), adapter(), cache, ignore))
    assert reason is Reason.CACHE_FULL
    assert is_clean(tmp_path)


async def test_a_model_is_fetched_like_an_adapter(cache: DiskCache, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "notes.txt"):
        (folder / name).write_text(name)
    source = open_source(folder.as_uri(), None, SourcePolicy())
    entry: CacheEntry = await fetch(source, Wanted(Kind.MODEL, model_files, 10**6), cache, ignore)
    assert [file.path for file in entry.files] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert entry.path.parent.name == "models"
