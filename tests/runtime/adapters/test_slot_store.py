import dataclasses
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_store import PreparedSlot, SlotTarget, prepare_slot
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import DecoderArch
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache
from tests.support.cached import put
from tests.support.spoiled_adapters import CONFIG, WEIGHTS, with_config


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10_000_000)


@pytest.fixture
def entry(cache: DiskCache, peft_adapter: Path) -> CacheEntry:
    return put(cache, {name: (peft_adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)})


@pytest.fixture
def target(arch: DecoderArch) -> SlotTarget:
    return SlotTarget(arch, "float32", max_rank=16)


def prepare(entry: CacheEntry, target: SlotTarget, cache: DiskCache) -> PreparedSlot:
    slot = prepare_slot(entry, target, cache)
    assert slot is not None
    return slot


def test_a_slot_file_is_made_once(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache, tmp_path: Path
) -> None:
    first = prepare(entry, target, cache)
    assert first.record.rank == 4
    assert first.record.target_modules == ("down_proj", "q_proj")
    made = first.path.stat().st_mtime_ns
    # The adapter's own files are not even looked at for the second.
    (entry.files_dir / WEIGHTS).unlink()
    second = prepare(entry, target, cache)
    assert second == first
    assert second.path.stat().st_mtime_ns == made
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_other_models_and_dtypes_get_files_of_their_own(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache
) -> None:
    assert isinstance(target.arch, DecoderArch)
    wider = dataclasses.replace(target.arch, vocab_size=target.arch.vocab_size + 16)
    targets = [
        target,
        dataclasses.replace(target, dtype="bfloat16"),
        dataclasses.replace(target, arch=wider),
    ]
    assert len({prepare(entry, each, cache).path for each in targets}) == 3


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_slot_file_is_made_anew(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache, damage: bytes
) -> None:
    slot = prepare(entry, target, cache)
    good = slot.path.read_bytes()
    slot.path.write_bytes(damage)
    assert prepare(entry, target, cache).path.read_bytes() == good


def test_a_damaged_record_is_made_anew(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache
) -> None:
    slot = prepare(entry, target, cache)
    slot.path.with_suffix(".json").write_text("{")
    assert prepare(entry, target, cache) == slot


def test_damaged_files_of_the_adapter_are_noticed_before_they_are_used(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache
) -> None:
    weights = entry.files_dir / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert prepare_slot(entry, target, cache) is None


def test_a_lower_limit_counts_for_a_file_that_was_made_before(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache
) -> None:
    prepare(entry, target, cache)
    with pytest.raises(ReasonedError) as caught:
        prepare_slot(entry, dataclasses.replace(target, max_rank=3), cache)
    assert caught.value.reason is Reason.RANK_TOO_LARGE


def test_an_adapter_that_is_refused_leaves_no_slot_file(
    cache: DiskCache, target: SlotTarget, peft_adapter: Path, tmp_path: Path
) -> None:
    folder = with_config(peft_adapter, tmp_path / "x", use_dora=True)
    entry = put(cache, {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    with pytest.raises(ReasonedError):
        prepare_slot(entry, target, cache)
    assert {path.name for path in entry.path.iterdir()} == {"files", "manifest"}


def test_a_slot_file_counts_as_used_room_and_goes_with_its_adapter(
    entry: CacheEntry, target: SlotTarget, cache: DiskCache
) -> None:
    before = cache.used_bytes()
    slot = prepare(entry, target, cache)
    assert cache.used_bytes() >= before + slot.path.stat().st_size
    cache.evict(Kind.ADAPTER, entry.digest)
    assert not slot.path.exists()


def test_a_cache_without_room_for_the_slot_file_is_full(
    target: SlotTarget, peft_adapter: Path, tmp_path: Path
) -> None:
    files = {name: (peft_adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    small = DiskCache(tmp_path / "small", sum(map(len, files.values())) + 1000)
    with pytest.raises(ReasonedError) as caught:
        prepare_slot(put(small, files), target, small)
    assert caught.value.reason is Reason.CACHE_FULL
