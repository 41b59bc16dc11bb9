"""Pages go round without loss, and a slot holds exactly what its file says whatever lay there."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from safetensors.torch import save_file

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.adapters.slots import SlotError, SlotLoad, SlotPool
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.base import LoraPool, LoraSlab, lora_bytes_per_page
from graft_runtime.layers.lora.layout import (
    SlotHeader,
    all_groups,
    layout_hash,
    pages_for,
    tensor_names,
)
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import DecoderArch

CPU = torch.device("cpu")
ARCH = DecoderArch(
    architecture="LlamaForCausalLM",
    vocab_size=24,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    norm_eps=1e-5,
    rope=RopeSpec(10_000.0),
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tie_embeddings=False,
    max_positions=64,
    dtype="float32",
    bos_token_id=None,
    eos_token_ids=(),
    attention_scale=0.5,
    windows=(None, None),
)
NUM_PAGES = 5
RANKS = (1, 4, 16, 17, 33, 64)


def header(rank: int, **changes: object) -> SlotHeader:
    made = SlotHeader(f"sha256:{rank:064x}", rank, pages_for(rank), "float32", layout_hash(ARCH))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # checked by the test


def tensors(rank: int, groups: set[str] | None = None) -> dict[str, torch.Tensor]:
    """Draw an adapter's tensors; everything beyond its rank is zero, as the converter leaves it."""
    generator = torch.Generator().manual_seed(rank)
    made = {}
    for layer, group in all_groups(ARCH):
        if groups is not None and group.name not in groups:
            continue
        a = torch.randn(group.a_shape(pages_for(rank)), generator=generator)
        b = torch.randn(group.b_shape(pages_for(rank)), generator=generator)
        if rank % 16:
            a[-1, :, rank % 16 :] = 0
            b[-1, rank % 16 :] = 0
        a_name, b_name = tensor_names(layer, group.name)
        made[a_name], made[b_name] = a, b
    return made


def write(folder: Path, rank: int, groups: set[str] | None = None) -> Path:
    path = folder / f"rank{rank}.slot"
    save_file(tensors(rank, groups), path, metadata=header(rank).to_metadata())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("slots")
    return {rank: write(folder, rank) for rank in RANKS}


def pool(num_pages: int = NUM_PAGES) -> SlotPool:
    return SlotPool(ARCH, num_pages=num_pages, dtype=torch.float32, device=CPU)


def load(slots: SlotPool, path: Path, max_bytes: int = 1 << 20) -> int:
    under_way = slots.begin_load(SlotSource.of(path))
    while not under_way.advance(max_bytes):
        slots.check_integrity()
    return under_way.slot


def parts_of(slab: LoraSlab) -> tuple[torch.Tensor, ...]:
    return (slab.a_PGRI, *slab.b_PRo)


def weights_of(lora: LoraPool, slot: int) -> list[torch.Tensor]:
    pages = list(lora.adapter(slot).pages)
    return [part[pages] for slab in lora.slabs.values() for part in parts_of(slab)]


class SlotMachine(RuleBasedStateMachine):
    """Loads, slices, cancels and releases in any order, beside a model of plain numbers."""

    files: dict[int, Path]
    loads = Bundle("loads")
    slots_held = Bundle("slots_held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool()
        self.rank_of: dict[int, int] = {}
        self.pages_loading = 0

    @property
    def pages_held(self) -> int:
        return self.pages_loading + sum(pages_for(rank) for rank in self.rank_of.values())

    @rule(target=loads, rank=st.sampled_from(RANKS))
    def begin(self, rank: int) -> object:
        fits = self.pages_held + pages_for(rank) <= NUM_PAGES
        if not fits:
            with pytest.raises(ReasonedError) as caught:
                self.pool.begin_load(SlotSource.of(self.files[rank]))
            assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
            return multiple()
        under_way = self.pool.begin_load(SlotSource.of(self.files[rank]))
        self.pages_loading += pages_for(rank)
        return under_way, rank

    @rule(target=slots_held, pair=consumes(loads), max_bytes=st.sampled_from((1, 100, 4096)))
    def finish(self, pair: tuple[SlotLoad, int], max_bytes: int) -> int:
        under_way, rank = pair
        for _ in range(3):
            under_way.advance(max_bytes)
        while not under_way.advance(1 << 20):
            pass
        self.pages_loading -= pages_for(rank)
        self.rank_of[under_way.slot] = rank
        return under_way.slot

    @rule(pair=consumes(loads), slices=st.integers(0, 5))
    def cancel(self, pair: tuple[SlotLoad, int], slices: int) -> None:
        under_way, rank = pair
        for _ in range(slices):
            assert not under_way.advance(64)
        under_way.cancel()
        under_way.cancel()
        self.pages_loading -= pages_for(rank)

    @rule(slot=consumes(slots_held))
    def release(self, slot: int) -> None:
        self.pool.release(slot)
        del self.rank_of[slot]

    @precondition(lambda self: self.rank_of)
    @rule()
    def compare_with_a_fresh_pool(self) -> None:
        for slot, rank in self.rank_of.items():
            fresh = pool()
            expected = weights_of(fresh.lora, load(fresh, self.files[rank]))
            assert all(map(torch.equal, weights_of(self.pool.lora, slot), expected))

    @invariant()
    def pages_add_up(self) -> None:
        self.pool.check_integrity()
        assert self.pool.free_pages == NUM_PAGES - self.pages_held
        assert self.pool.lora.slots == self.rank_of.keys()


def test_any_order_of_loads_keeps_pages_and_weights(files: dict[int, Path]) -> None:
    SlotMachine.files = files
    machine = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )
    run_state_machine_as_test(SlotMachine, settings=machine)


@pytest.fixture
def used() -> Iterator[SlotPool]:
    """A pool whose every page has held something else."""
    slots = pool()
    for slab in slots.lora.slabs.values():
        for part in parts_of(slab):
            part.fill_(7.0)
    yield slots
    slots.check_integrity()


def test_a_small_adapter_leaves_nothing_of_a_larger_one(
    used: SlotPool, files: dict[int, Path]
) -> None:
    used.release(load(used, files[16]))
    fresh = pool()
    after, expected = load(used, files[4], 333), load(fresh, files[4])
    assert used.lora.adapter(after) == fresh.lora.adapter(expected)
    assert all(map(torch.equal, weights_of(used.lora, after), weights_of(fresh.lora, expected)))


def test_groups_the_file_lacks_become_zeros(used: SlotPool, tmp_path: Path) -> None:
    slot = load(used, write(tmp_path, 20, {"qkv"}))
    adapter = used.lora.adapter(slot)
    assert adapter.touched == {(0, "qkv"), (1, "qkv")}
    for key, slab in used.lora.slabs.items():
        pages = list(adapter.pages)
        has_weights = any(bool(part[pages].any()) for part in parts_of(slab))
        assert has_weights == (key in adapter.touched)


def test_other_slots_are_not_touched_by_a_load(files: dict[int, Path]) -> None:
    slots = pool()
    slot = load(slots, files[17])
    before = weights_of(slots.lora, slot)
    load(slots, files[33])
    assert all(map(torch.equal, weights_of(slots.lora, slot), before))


@pytest.mark.parametrize("max_bytes", [1, 4, 1000, 10**9])
def test_a_slice_copies_no_more_than_asked(files: dict[int, Path], max_bytes: int) -> None:
    slots = pool()
    under_way = slots.begin_load(SlotSource.of(files[4]))
    total = lora_bytes_per_page(ARCH, torch.float32)
    slices = 1
    while not under_way.advance(max_bytes):
        slices += 1
    at_least = total // max(4, max_bytes)
    assert at_least <= slices <= at_least + 2 + total // 4
    if max_bytes >= total:
        assert slices == 1


def test_a_slot_is_not_usable_before_the_last_slice(files: dict[int, Path]) -> None:
    slots = pool()
    under_way = slots.begin_load(SlotSource.of(files[4]))
    assert not under_way.advance(100)
    with pytest.raises(SlotError):
        _ = under_way.slot
    assert not slots.lora.slots


def test_releasing_twice_or_while_loading_is_an_error(files: dict[int, Path]) -> None:
    slots = pool()
    slot = load(slots, files[4])
    slots.release(slot)
    with pytest.raises(SlotError):
        slots.release(slot)
    slots.begin_load(SlotSource.of(files[4]))
    with pytest.raises(SlotError):
        slots.release(1)


def test_lost_and_shared_pages_are_noticed(files: dict[int, Path]) -> None:
    for damage in ("lose", "share", "bind"):
        slots = pool()
        slot = load(slots, files[17])
        if damage == "lose":
            slots._free.pop()
        elif damage == "share":
            slots._pages_of[slot + 1] = slots._pages_of[slot]
        else:
            slots.lora.unbind(slot)
        with pytest.raises(SlotError):
            slots.check_integrity()


def refused(path: Path) -> ReasonedError:
    slots = pool()
    with pytest.raises(ReasonedError) as caught:
        slots.begin_load(SlotSource.of(path))
    slots.check_integrity()
    assert slots.free_pages == NUM_PAGES
    return caught.value


def test_a_file_for_another_model_or_dtype_is_refused(tmp_path: Path) -> None:
    for change in ({"arch": "0123456789abcdef"}, {"dtype": "bfloat16"}):
        path = tmp_path / "other.slot"
        save_file(tensors(4), path, metadata=header(4, **change).to_metadata())
        assert refused(path).reason is Reason.INCOMPATIBLE_BASE_MODEL


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "damaged.slot"
    good, metadata = tensors(4), header(4).to_metadata()
    a_name, b_name = tensor_names(1, "down")
    cases = {
        "lacks": {name: tensor for name, tensor in good.items() if name != b_name},
        "shape": good | {a_name: good[a_name][:, :, :, :-1].contiguous()},
        "in F16": good | {a_name: good[a_name].half()},
        "no group": good | {"model.embed_tokens.lora_A": torch.zeros(1)},
    }
    for message, damaged in cases.items():
        save_file(damaged, path, metadata=metadata)
        error = refused(path)
        assert error.reason is Reason.MALFORMED_ARTIFACT
        assert message in error.message
    for wrong in ({}, metadata | {"format": "graft-slot-0"}, metadata | {"pages": "9"}):
        save_file(good, path, metadata=wrong)
        assert refused(path).reason is Reason.MALFORMED_ARTIFACT
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(path).reason is Reason.MALFORMED_ARTIFACT
    assert refused(tmp_path / "absent.slot").reason is Reason.MALFORMED_ARTIFACT


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_non_finite_weight_stops_the_load_and_gives_the_pages_back(
    tmp_path: Path, value: str
) -> None:
    path = tmp_path / "nan.slot"
    damaged = tensors(4)
    damaged[tensor_names(1, "o")[1]][0, 2, 3] = float(value)
    save_file(damaged, path, metadata=header(4).to_metadata())
    slots = pool()
    with pytest.raises(ReasonedError) as caught:
        load(slots, path, max_bytes=500)
    assert caught.value.reason is Reason.NON_FINITE_WEIGHTS
    assert slots.free_pages == NUM_PAGES
    slots.check_integrity()


def test_slabs_keep_their_address(files: dict[int, Path]) -> None:
    slots = pool()
    slabs = slots.lora.slabs.values()
    before = [part.data_ptr() for slab in slabs for part in parts_of(slab)]
    rng = random.Random(0)
    for _ in range(5):
        slots.release(load(slots, files[rng.choice(RANKS)]))
    assert [part.data_ptr() for slab in slabs for part in parts_of(slab)] == before
