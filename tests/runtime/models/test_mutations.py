"""The comparison with transformers has teeth: every single thing done wrong makes it fail."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graft_runtime.errors import ReasonedError
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import load_arch
from tests.support.decoding import KV, Loaded, load_all, reference_logits, worst_delta
from tests.support.packing import Packer, all_logits, run_in_pieces
from tests.support.peft_adapters import ALL_LINEAR, load_with_adapters, make_adapter
from tests.support.tiny_models import load_reference, make_llama

TOLERANCE = 1e-4
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Shape legend: P pages, R = PAGE_RANK, o features out of one slice.

Weights = dict[str, Tensor]


def zero(name: str) -> Callable[[Weights], None]:
    def mutate(weights: Weights) -> None:
        weights[name].zero_()

    return mutate


def ones(name: str) -> Callable[[Weights], None]:
    def mutate(weights: Weights) -> None:
        weights[name].fill_(1.0)

    return mutate


def swap(one: str, other: str) -> Callable[[Weights], None]:
    def mutate(weights: Weights) -> None:
        weights[one], weights[other] = weights[other], weights[one]

    return mutate


def swap_key_heads(weights: Weights) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    weights[name] = weights[name].view(2, 16, 64).flip(0).reshape(32, 64)


LAYER = "model.layers.1"
WEIGHT_MUTATIONS: dict[str, Callable[[Weights], None]] = {
    **{
        f"drop the bias of {module}": zero(f"{LAYER}.{module}.bias")
        for module in (
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    },
    "skip the first norm's weight": ones(f"{LAYER}.input_layernorm.weight"),
    "skip the second norm's weight": ones(f"{LAYER}.post_attention_layernorm.weight"),
    "skip the last norm's weight": ones("model.norm.weight"),
    "exchange gate and up": swap(f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
    "exchange keys and values": swap(
        f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.self_attn.v_proj.weight"
    ),
    "exchange layers' outputs": swap(
        f"{LAYER}.self_attn.o_proj.weight", "model.layers.2.self_attn.o_proj.weight"
    ),
    "exchange key heads of a group": swap_key_heads,
}

ARCH_MUTATIONS: dict[str, dict[str, Any]] = {
    "ignore the rope scaling": {"rope": RopeSpec(theta=10_000.0)},
    "take another rope theta": {"rope": RopeSpec(5_000.0, "llama3", 8.0, 1.0, 4.0, 32)},
    "scale rope linearly": {"rope": RopeSpec(10_000.0, "linear", 8.0)},
    "take another original length": {"rope": RopeSpec(10_000.0, "llama3", 8.0, 1.0, 4.0, 64)},
    "take another rope factor": {"rope": RopeSpec(10_000.0, "llama3", 4.0, 1.0, 4.0, 32)},
    "take another norm epsilon": {"norm_eps": 1e-2},
    "tie the embeddings": {"tie_embeddings": True},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("mutations"), seed=21, rope_parameters=ROPE)


def mutated_weights(model_dir: Path, folder: Path, mutate: Callable[[Weights], None]) -> Path:
    weights = load_file(model_dir / "model.safetensors")
    mutate(weights)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
    )
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    return folder


def worst_of_base(ours: Loaded, oracle: Any) -> float:
    rng = random.Random(0)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=rng)
    sequence = packer.sequence([rng.randrange(160) for _ in range(80)])
    run_in_pieces(ours.decoder, packer, [sequence], rng)
    return worst_delta(all_logits(sequence), reference_logits(oracle, sequence.tokens))


def test_nothing_changed_passes(model_dir: Path, tmp_path: Path) -> None:
    same = mutated_weights(model_dir, tmp_path, lambda weights: None)
    assert worst_of_base(load_all(same, {}, tmp_path), load_reference(model_dir)) <= TOLERANCE


@pytest.mark.parametrize("mutation", WEIGHT_MUTATIONS)
def test_changed_weights_fail(model_dir: Path, tmp_path: Path, mutation: str) -> None:
    other = mutated_weights(model_dir, tmp_path, WEIGHT_MUTATIONS[mutation])
    ours = load_all(other, {}, tmp_path)
    assert worst_of_base(ours, load_reference(model_dir)) > 10 * TOLERANCE


@pytest.mark.parametrize("mutation", ARCH_MUTATIONS)
def test_a_misread_config_fails(model_dir: Path, tmp_path: Path, mutation: str) -> None:
    arch = dataclasses.replace(load_arch(model_dir), **ARCH_MUTATIONS[mutation])
    ours = load_all(model_dir, {}, tmp_path, arch=arch)
    assert worst_of_base(ours, load_reference(model_dir)) > 10 * TOLERANCE


def test_ignored_biases_are_refused_as_unused(model_dir: Path, tmp_path: Path) -> None:
    arch = dataclasses.replace(load_arch(model_dir), qkv_bias=False)
    with pytest.raises(ReasonedError, match="does not use"):
        load_all(model_dir, {}, tmp_path, arch=arch)


def double_b(ours: Loaded, slot: int) -> None:
    for slab in ours.slots.lora.slabs.values():
        for page in ours.slots.lora.adapter(slot).pages:
            for b_PRo in slab.b_PRo:
                b_PRo[page].mul_(2.0)


def forget_last_page(ours: Loaded, slot: int) -> None:
    last = ours.slots.lora.adapter(slot).pages[-1]
    for slab in ours.slots.lora.slabs.values():
        for b_PRo in slab.b_PRo:
            b_PRo[last].zero_()


def exchange_slices(ours: Loaded, slot: int) -> None:
    for page in ours.slots.lora.adapter(slot).pages:
        for (_, name), slab in ours.slots.lora.slabs.items():
            if name == "gate_up":
                slab.a_PGRI[page] = slab.a_PGRI[page].flip(0)


def forget_group(name: str) -> Callable[[Loaded, int], None]:
    def mutate(ours: Loaded, slot: int) -> None:
        resident = ours.slots.lora.adapter(slot)
        kept = frozenset(key for key in resident.touched if key[1] != name)
        ours.slots.lora.bind(slot, dataclasses.replace(resident, touched=kept))

    return mutate


LORA_MUTATIONS: dict[str, Callable[[Loaded, int], None]] = {
    "scale twice": double_b,
    "stop at rank 16": forget_last_page,
    "exchange slices": exchange_slices,
    **{
        f"leave out {name}": forget_group(name)
        for name in ("qkv", "o", "gate_up", "down", "lm_head")
    },
}


@pytest.mark.parametrize("mutation", [None, *LORA_MUTATIONS])
def test_a_wrong_adapter_fails(model_dir: Path, tmp_path: Path, mutation: str | None) -> None:
    folders = {
        "a": make_adapter(
            model_dir, tmp_path / "a", rank=20, seed=1, target_modules=(*ALL_LINEAR, "lm_head")
        )
    }
    ours, oracle = load_all(model_dir, folders, tmp_path), load_with_adapters(model_dir, folders)
    if mutation is not None:
        with torch.inference_mode():
            LORA_MUTATIONS[mutation](ours, ours.slot_of["a"])
    rng = random.Random(0)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=rng)
    sequence = packer.sequence([rng.randrange(160) for _ in range(40)], ours.slot_of["a"])
    run_in_pieces(ours.decoder, packer, [sequence], rng)
    worst = worst_delta(all_logits(sequence), reference_logits(oracle, sequence.tokens, "a"))
    assert (worst > 10 * TOLERANCE) == (mutation is not None)


def test_an_adapter_of_another_row_fails(model_dir: Path, tmp_path: Path) -> None:
    folders = {
        name: make_adapter(model_dir, tmp_path / name, rank=8, seed=seed)
        for seed, name in enumerate(("a", "b"))
    }
    ours, oracle = load_all(model_dir, folders, tmp_path), load_with_adapters(model_dir, folders)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    tokens = list(range(30))
    sequence = packer.sequence(tokens, ours.slot_of["b"])
    with torch.inference_mode():
        logits = ours.decoder.forward(packer.batch([(sequence, 30)]))
    assert worst_delta(logits, reference_logits(oracle, tokens, "a")) > 10 * TOLERANCE
