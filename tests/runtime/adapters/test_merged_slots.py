"""A slot filled from several files computes the weighted sum of their updates."""

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from graft_protocol.reasons import Reason
from graft_runtime.adapters.file_reader import PageCacheReader
from graft_runtime.adapters.slot_source import SlotShare, SlotSource
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.cpu import group_rows
from tests.runtime.adapters.test_slots import ARCH, CPU, files, load, pool, write
from tests.support.lora_cases import add

__all__ = ["files"]

WEIGHTS = (0.25, -1.5, 2.0)


def changes(slots: SlotPool, slot: int) -> list[torch.Tensor]:
    """Return what a slot adds to three rows, for every group."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for slab in slots.lora.slabs.values():
        x = torch.randn(3, slab.group.in_features, generator=generator)
        out = torch.zeros(3, slab.group.out_features)
        add(group_rows(slots.lora, [slot] * 3, CPU), slab, x, out)
        found.append(out)
    return found


def test_the_parts_add_up(files: dict[int, Path], tmp_path: Path) -> None:
    paths = [files[4], files[17], write(tmp_path, 20, {"qkv", "down"})]
    slots = pool(10)
    source = SlotSource(tuple(map(SlotShare, paths, WEIGHTS)))
    under_way = slots.begin_load(source)
    while not under_way.advance(1000):
        slots.check_integrity()
    merged = changes(slots, under_way.slot)
    parts = [changes(slots, load(slots, path)) for path in paths]
    assert slots.lora.adapter(under_way.slot).touched == frozenset(slots.lora.slabs)
    for total, *each in zip(merged, *parts, strict=True):
        expected = sum(weight * one for weight, one in zip(WEIGHTS, each, strict=True))
        torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
        assert total.abs().max() > 0.1


def test_a_weight_that_overflows_is_refused_and_gives_its_pages_back(
    files: dict[int, Path],
) -> None:
    slots = pool()
    under_way = slots.begin_load(SlotSource((SlotShare(files[4], 1e39),)))
    with pytest.raises(ReasonedError) as caught:
        under_way.advance(1 << 20)
    assert caught.value.reason is Reason.NON_FINITE_WEIGHTS
    assert slots.free_pages == slots.num_pages
    slots.check_integrity()


def test_one_bad_part_takes_no_pages(files: dict[int, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.slot"
    bad.write_bytes(b"no slot file")
    slots = pool()
    with pytest.raises(ReasonedError):
        slots.begin_load(SlotSource((SlotShare(files[4]), SlotShare(bad))))
    slots.check_integrity()
    assert slots.free_pages == slots.num_pages


def test_a_load_is_ready_when_its_files_have_been_read(files: dict[int, Path]) -> None:
    reading: list[Future[None]] = []

    def read_later(path: Path) -> Future[None]:
        assert path == files[4]
        reading.append(Future())
        return reading[-1]

    slots = SlotPool(ARCH, num_pages=4, dtype=torch.float32, device=CPU, reader=read_later)
    one, other = (slots.begin_load(SlotSource.of(files[4])) for _ in range(2))
    assert (one.is_ready, other.is_ready) == (False, False)
    reading[0].set_result(None)
    assert (one.is_ready, other.is_ready) == (True, False)
    assert one.advance(1 << 20)
    reading[1].set_exception(OSError("the disk is gone"))
    assert other.is_ready
    with pytest.raises(ReasonedError, match="the disk is gone"):
        other.advance(1 << 20)
    slots.check_integrity()
    assert slots.free_pages == 3


def test_the_reader_reads_and_says_what_is_missing(files: dict[int, Path], tmp_path: Path) -> None:
    reader = PageCacheReader()
    assert reader(files[64]).result(timeout=60) is None
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "absent").result(timeout=60)
