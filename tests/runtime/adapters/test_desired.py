import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from graft_protocol.desired import (
    NUM_SHARDS,
    AdapterEntry,
    build_shards,
    set_hash,
    shard_index,
    shard_key,
)
from graft_protocol.reasons import Reason
from graft_runtime.adapters.desired import DesiredReader, DesiredSet, watch


def entry(name: str) -> AdapterEntry:
    digest = "sha256:" + "0" * 64
    return AdapterEntry(
        revision=f"ns/{name}@000000000000", served_name=name, uri="s3://b/x", digest=digest
    )


ENTRIES = [entry(name) for name in ("one", "two", "three")]


class Projection:
    """Writes shards the way a kubelet does: a new folder, then one atomic switch of a link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version = 0

    def write(self, texts: dict[str, str]) -> None:
        self._version += 1
        version = self.folder / f"..version{self._version}"
        version.mkdir()
        for key, text in texts.items():
            (version / key).write_text(text)
            link = self.folder / key
            if not link.is_symlink():
                link.symlink_to(Path("..data") / key)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(self.folder / "..data")


def texts_of(entries: Sequence[AdapterEntry]) -> dict[str, str]:
    return {shard_key(shard.index): shard.to_json() for shard in build_shards(entries)}


@pytest.fixture
def projection(tmp_path: Path) -> Projection:
    return Projection(tmp_path)


def names(desired: DesiredSet) -> set[str]:
    return {entry.served_name for entry in desired.entries}


def key_of(name: str) -> str:
    return shard_key(shard_index(name))


def test_a_whole_set_is_read(projection: Projection) -> None:
    projection.write(texts_of(ENTRIES))
    desired = DesiredReader(projection.folder).read()
    assert desired.complete
    assert names(desired) == {"one", "two", "three"}
    assert desired.set_hash == set_hash(shard.hash for shard in build_shards(ENTRIES))
    assert [report.reason for report in desired.shard_reports] == [None] * NUM_SHARDS


def test_an_empty_folder_is_not_an_empty_set(tmp_path: Path) -> None:
    desired = DesiredReader(tmp_path / "nowhere").read()
    assert not desired.complete
    assert desired.entries == ()
    assert {report.reason for report in desired.shard_reports} == {Reason.MALFORMED_SHARD}


def test_a_set_without_entries_is_complete(projection: Projection) -> None:
    projection.write(texts_of([]))
    desired = DesiredReader(projection.folder).read()
    assert desired.complete
    assert desired.entries == ()


def test_one_missing_shard_keeps_a_set_incomplete(projection: Projection) -> None:
    texts = texts_of(ENTRIES)
    missing = texts.pop(key_of("one"))
    projection.write(texts)
    reader = DesiredReader(projection.folder)
    assert not reader.read().complete
    assert names(reader.read()) == {"two", "three"}
    projection.write(texts | {key_of("one"): missing})
    assert reader.read().complete
    assert names(reader.read()) == {"one", "two", "three"}


def too_new(text: str) -> str:
    return json.dumps(json.loads(text) | {"minProtocol": 999})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: "", Reason.MALFORMED_SHARD),
        (lambda text: text[:-1], Reason.MALFORMED_SHARD),
        (lambda text: "[]", Reason.MALFORMED_SHARD),
        (lambda text: '"text"', Reason.MALFORMED_SHARD),
        (lambda text: text.replace("s3://b/x", "s3://b/y"), Reason.MALFORMED_SHARD),
        (lambda text: '{"a":' * 100_000, Reason.MALFORMED_SHARD),
        (lambda text: " " * (1 << 22), Reason.MALFORMED_SHARD),
        (too_new, Reason.RUNTIME_TOO_OLD),
    ],
)
def test_a_damaged_shard_keeps_its_last_good_content(
    projection: Projection, damage: object, reason: Reason
) -> None:
    texts = texts_of(ENTRIES)
    projection.write(texts)
    reader = DesiredReader(projection.folder)
    before = reader.read()
    key = key_of("one")
    projection.write(texts | {key: damage(texts[key])})  # type: ignore[operator] # a function
    after = reader.read()
    assert after.entries == before.entries
    assert after.set_hash == before.set_hash
    assert after.complete
    report = after.shard_reports[shard_index("one")]
    assert report.reason is reason
    assert report.hash == before.shard_reports[shard_index("one")].hash
    assert sum(each.reason is not None for each in after.shard_reports) == 1
    projection.write(texts)
    assert reader.read() == before


def test_a_shard_under_another_shards_name_is_refused(projection: Projection) -> None:
    texts = texts_of(ENTRIES)
    texts[shard_key(0)], texts[shard_key(1)] = texts[shard_key(1)], texts[shard_key(0)]
    projection.write(texts)
    reports = DesiredReader(projection.folder).read().shard_reports
    assert [report.reason for report in reports[:2]] == [Reason.MALFORMED_SHARD] * 2


def test_a_shard_that_is_not_text_is_refused(projection: Projection) -> None:
    projection.write(texts_of([]))
    (projection.folder / "..data" / shard_key(3)).write_bytes(b"\xff\xfe")
    assert not DesiredReader(projection.folder).read().complete


async def test_a_watcher_sees_the_start_and_every_change(projection: Projection) -> None:
    projection.write(texts_of([]))
    watcher = watch(projection.folder, poll_seconds=0.01)
    async with asyncio.timeout(10):
        await anext(watcher)
        projection.write(texts_of(ENTRIES[:1]))
        await anext(watcher)
        # Several changes while nobody waits are one.
        projection.write(texts_of(ENTRIES[:2]))
        projection.write(texts_of(ENTRIES))
        await anext(watcher)
    quiet = asyncio.ensure_future(anext(watcher))
    done, _ = await asyncio.wait({quiet}, timeout=0.1)
    assert not done
    quiet.cancel()


async def test_a_watcher_waits_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    watcher = watch(folder, poll_seconds=0.01)
    async with asyncio.timeout(10):
        await anext(watcher)
        folder.mkdir()
        Projection(folder).write(texts_of(ENTRIES))
        await anext(watcher)


async def test_a_file_replaced_in_place_is_a_change_too(tmp_path: Path) -> None:
    texts = texts_of([])
    for key, text in texts.items():
        (tmp_path / key).write_text(text)
    watcher = watch(tmp_path, poll_seconds=0.01)
    async with asyncio.timeout(10):
        await anext(watcher)
        (tmp_path / shard_key(0)).write_text(texts[shard_key(0)] + " ")
        await anext(watcher)
