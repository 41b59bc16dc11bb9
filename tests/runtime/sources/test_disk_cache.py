import asyncio
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from graft_protocol.digest import canonical_manifest, manifest_digest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.disk_errors import disk_errors
from tests.support.cached import put, records_of

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 1000}


def numbered(number: int) -> dict[str, bytes]:
    """Return a content of 1,000 bytes that is like no other."""
    return {"x": number.to_bytes(4, "big") * 250}


def set_last_use(entry: CacheEntry, seconds: int) -> None:
    os.utime(entry.path, (seconds, seconds))


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path, 100_000)


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "tmp").iterdir()]


def test_a_published_content_is_found_by_its_digest(cache: DiskCache, tmp_path: Path) -> None:
    entry = put(cache, FILES)
    assert entry.digest == manifest_digest(records_of(FILES))
    assert entry.path == tmp_path / "adapters" / entry.digest.removeprefix("sha256:")
    found = cache.open(Kind.ADAPTER, entry.digest)
    assert found is not None
    assert found.bytes == 1002
    assert {path.name: path.read_bytes() for path in found.files_dir.iterdir()} == FILES
    assert found.is_intact()
    assert cache.open(Kind.MODEL, entry.digest) is None
    assert leftovers(tmp_path) == []


def test_a_content_that_is_published_twice_is_kept_once(cache: DiskCache) -> None:
    first, second = put(cache, FILES), put(cache, FILES)
    assert first.path == second.path
    assert second.is_intact()


def test_nothing_is_visible_before_it_is_whole(cache: DiskCache, tmp_path: Path) -> None:
    digest = manifest_digest(records_of(FILES))
    with cache.staging(1002) as staging:
        (staging.files_dir / "adapter_config.json").write_bytes(b"{}")
        assert cache.open(Kind.ADAPTER, digest) is None
    assert cache.open(Kind.ADAPTER, digest) is None
    assert leftovers(tmp_path) == []


def test_a_failed_fetch_leaves_nothing_behind(cache: DiskCache, tmp_path: Path) -> None:
    def fail() -> None:
        with cache.staging(10):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert leftovers(tmp_path) == []


def test_a_text_that_is_no_digest_never_becomes_a_path(cache: DiskCache) -> None:
    for text in ("", "../../etc", "sha256:../x", "sha256:" + "A" * 64):
        with pytest.raises(ReasonedError):
            cache.open(Kind.ADAPTER, text)


@pytest.mark.parametrize("damage", ["manifest", "files/x", "size", "exchanged"])
def test_a_damaged_entry_is_not_opened_and_can_be_replaced(cache: DiskCache, damage: str) -> None:
    entry = put(cache, numbered(1))
    entry.close()
    if damage == "size":
        (entry.files_dir / "x").write_bytes(b"short")
    elif damage == "exchanged":  # consistent in itself, and not what the name promises
        (entry.files_dir / "x").write_bytes(numbered(2)["x"])
        manifest = canonical_manifest(records_of(numbered(2)))
        (entry.path / "manifest").write_bytes(manifest)
    else:
        (entry.path / damage).unlink()
    assert cache.open(Kind.ADAPTER, entry.digest) is None
    again = put(cache, numbered(1))
    assert again.digest == entry.digest
    assert again.is_intact()


def test_a_changed_byte_is_noticed(cache: DiskCache) -> None:
    entry = put(cache, numbered(1))
    (entry.files_dir / "x").write_bytes(b"y" * 1000)
    assert not entry.is_intact()


def test_leftovers_of_a_crash_are_swept_and_a_live_fetch_is_not(tmp_path: Path) -> None:
    crashed = tmp_path / "tmp" / "fetch-crashed" / "files"
    crashed.mkdir(parents=True)
    (crashed / "half").write_bytes(b"x")
    cache = DiskCache(tmp_path, 100_000)
    assert leftovers(tmp_path) == []
    with cache.staging(10) as staging:
        DiskCache(tmp_path, 100_000)
        assert staging.files_dir.is_dir()


def test_the_least_recently_used_content_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3500)
    entries = [put(cache, numbered(number)) for number in range(3)]
    for seconds, entry in enumerate(entries):
        entry.close()
        set_last_use(entry, seconds)
    used_again = cache.open(Kind.ADAPTER, entries[0].digest)
    assert used_again is not None
    used_again.close()
    put(cache, numbered(3))
    found = [cache.open(Kind.ADAPTER, entry.digest) is not None for entry in entries]
    assert found == [True, False, True]


def test_a_pinned_content_is_never_evicted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2500)
    pinned, loose = put(cache, numbered(0)), put(cache, numbered(1))
    loose.close()
    set_last_use(pinned, 0)
    put(cache, numbered(2))
    assert pinned.is_intact()
    assert cache.open(Kind.ADAPTER, loose.digest) is None
    with pytest.raises(ReasonedError) as caught:
        put(cache, numbered(3))
    assert caught.value.reason is Reason.CACHE_FULL
    pinned.close()
    put(cache, numbered(3)).close()
    assert cache.open(Kind.ADAPTER, pinned.digest) is None


def test_what_can_never_fit_evicts_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2500)
    entry = put(cache, numbered(0))
    entry.close()
    with pytest.raises(ReasonedError) as caught, cache.staging(10_000):
        pytest.fail("there is no such room")
    assert caught.value.reason is Reason.CACHE_FULL
    assert cache.open(Kind.ADAPTER, entry.digest) is not None


def test_room_that_a_running_fetch_will_need_is_not_given_twice(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2500)
    with cache.staging(2000), pytest.raises(ReasonedError), cache.staging(1000):
        pytest.fail("there is no such room")
    with cache.staging(1000):
        pass


def test_a_pin_of_another_process_counts(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1500)
    entry = put(cache, numbered(0))
    code = (
        "import sys, pathlib\n"
        "from graft_runtime.sources.cache_entry import CacheEntry\n"
        "entry = CacheEntry.open(pathlib.Path(sys.argv[1]))\n"
        "print(entry is not None, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(entry.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        entry.close()
        with pytest.raises(ReasonedError):
            put(cache, numbered(1))
        other.communicate()
    put(cache, numbered(1))


async def test_a_fetch_lock_lets_one_task_in_at_a_time(cache: DiskCache, tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    inside = 0
    most = 0

    async def work() -> None:
        nonlocal inside, most
        async with cache.fetch_lock(Kind.ADAPTER, digest):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.timeout(10):
        await asyncio.gather(*(work() for _ in range(8)))
    assert most == 1
    assert list((tmp_path / "locks").iterdir()) == []


async def test_waiting_for_a_fetch_lock_can_be_cancelled(cache: DiskCache) -> None:
    digest = "sha256:" + "0" * 64
    async with cache.fetch_lock(Kind.ADAPTER, digest):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), cache.fetch_lock(Kind.ADAPTER, digest):
                pytest.fail("the lock is taken")
    async with asyncio.timeout(5), cache.fetch_lock(Kind.ADAPTER, digest):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_refuses_is_a_full_cache(number: int) -> None:
    with pytest.raises(ReasonedError) as caught, disk_errors():
        raise OSError(number, "no")
    assert caught.value.reason is Reason.CACHE_FULL


def test_other_errors_are_not_blamed_on_the_disk() -> None:
    with pytest.raises(FileNotFoundError), disk_errors():
        raise FileNotFoundError


class CacheMachine(RuleBasedStateMachine):
    """Random use of a small cache: bounds hold, pins hold, contents are what they were."""

    pins = Bundle("pins")
    max_bytes = 5_000

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._root = Path(self._folder.name)
        self._cache = DiskCache(self._root, self.max_bytes)
        self._pinned: list[CacheEntry] = []

    @rule(target=pins, number=st.integers(0, 7))
    def publish(self, number: int) -> CacheEntry | None:
        try:
            entry = put(self._cache, numbered(number))
        except ReasonedError as error:
            pinned = {pinned.digest for pinned in self._pinned}
            assert error.reason is Reason.CACHE_FULL  # noqa: PT017 - the other way out is success
            assert len(pinned) >= 4
            return None
        self._pinned.append(entry)
        return entry

    @rule(target=pins, number=st.integers(0, 7))
    def open(self, number: int) -> CacheEntry | None:
        entry = self._cache.open(Kind.ADAPTER, manifest_digest(records_of(numbered(number))))
        if entry is not None:
            self._pinned.append(entry)
        return entry

    @rule(entry=consumes(pins))
    def unpin(self, entry: CacheEntry | None) -> None:
        if entry is not None:
            entry.close()
            self._pinned.remove(entry)

    @rule()
    def restart(self) -> None:
        self._cache = DiskCache(self._root, self.max_bytes)

    @invariant()
    def pinned_contents_are_whole(self) -> None:
        assert all(entry.is_intact() for entry in self._pinned)

    @invariant()
    def the_bound_holds(self) -> None:
        # Manifests come on top of what was reserved, and are counted from then on.
        assert self._cache.used_bytes() <= self.max_bytes + 200
        assert leftovers(self._root) == []

    def teardown(self) -> None:
        for entry in self._pinned:
            entry.close()
        self._folder.cleanup()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
