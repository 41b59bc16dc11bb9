"""Every row of any packed batch has the logits of transformers and peft run alone, in float32."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.support.decoding import KV, Loaded, load_all, reference_logits, worst_delta
from tests.support.packing import Packer, all_logits, run_in_pieces
from tests.support.peft_adapters import ALL_LINEAR, load_with_adapters, make_adapter
from tests.support.tiny_models import load_reference, make_llama

TOLERANCE = 1e-4
"""float32 sums of a few hundred terms in another order differ by about 1e-6 of the logits."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"attention_bias": False, "mlp_bias": False},
    "biased": {},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0}},
    "tied": {"tie_word_embeddings": True},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 24},
    "as many key heads": {"num_key_value_heads": 4},
}

ADAPTERS: dict[str, dict[str, Any]] = {
    "r4": {"rank": 4, "alpha": 8},
    "r8-rs": {"rank": 8, "alpha": 16, "rslora": True},
    "r16-qv": {"rank": 16, "alpha": 16, "target_modules": ("q_proj", "v_proj")},
    "r24-head": {"rank": 24, "alpha": 12, "target_modules": (*ALL_LINEAR, "lm_head")},
    "r33-patterns": {
        "rank": 33,
        "alpha": 40,
        "target_modules": ("k_proj", "o_proj", "down_proj", "up_proj"),
        "rank_pattern": {"o_proj": 5, "down_proj": 17},
        "alpha_pattern": {"k_proj": 70},
    },
}


class Adapted(NamedTuple):
    """A model with every adapter, on both sides."""

    model_dir: Path
    folders: dict[str, Path]
    oracle: Any
    ours: Loaded


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    root = tmp_path_factory.mktemp("adapted")
    model_dir = make_llama(root, seed=11, rope_parameters=LLAMA3_ROPE)
    folders = {
        name: make_adapter(model_dir, root / name, seed=seed, **config)
        for seed, (name, config) in enumerate(ADAPTERS.items())
    }
    oracle = load_with_adapters(model_dir, folders)
    return Adapted(model_dir, folders, oracle, load_all(model_dir, folders, root))


def tokens_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(160) for _ in range(length)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scattered", [False, True], ids=["runs of blocks", "scattered blocks"])
def test_packed_chunks_equal_transformers(tmp_path: Path, variant: str, scattered: bool) -> None:
    model_dir = make_llama(tmp_path, seed=5, **VARIANTS[variant])
    ours, oracle = load_all(model_dir, {}, tmp_path), load_reference(model_dir)
    rng = random.Random(7)
    packer = Packer(
        num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=rng if scattered else None
    )
    sequences = [packer.sequence(tokens_of(rng, length)) for length in (1, 8, 23, 70, 130)]
    run_in_pieces(ours.decoder, packer, sequences, rng)
    for sequence in sequences:
        expected = reference_logits(oracle, sequence.tokens)
        assert worst_delta(all_logits(sequence), expected) <= TOLERANCE


def test_mixed_rows_each_follow_their_own_adapter(adapted: Adapted) -> None:
    rng = random.Random(3)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=rng)
    names = [None, *ADAPTERS, None]
    slots = [adapted.ours.slot_of[name] if name else 0 for name in names]
    sequences = [packer.sequence(tokens_of(rng, rng.randint(40, 90)), slot) for slot in slots]
    run_in_pieces(adapted.ours.decoder, packer, sequences, rng)
    for name, sequence in zip(names, sequences, strict=True):
        expected = reference_logits(adapted.oracle, sequence.tokens, name)
        ours = all_logits(sequence)
        assert worst_delta(ours, expected) <= TOLERANCE, name
        if name is not None:
            base = reference_logits(adapted.oracle, sequence.tokens)
            assert float((expected - base).abs().mean()) >= 0.1, "the adapter does next to nothing"
        assert len(set(ours.argmax(dim=-1).tolist())) >= 20, "the model says the same all the time"


@pytest.mark.parametrize("name", ADAPTERS)
def test_one_adapter_alone_equals_peft(adapted: Adapted, name: str) -> None:
    rng = random.Random(1)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    sequence = packer.sequence(tokens_of(rng, 60), adapted.ours.slot_of[name])
    run_in_pieces(adapted.ours.decoder, packer, [sequence], rng)
    expected = reference_logits(adapted.oracle, sequence.tokens, name)
    assert worst_delta(all_logits(sequence), expected) <= TOLERANCE


def test_base_rows_are_the_same_beside_any_adapter_mix(adapted: Adapted) -> None:
    rng = random.Random(9)
    prompts = [tokens_of(rng, 30) for _ in range(4)]

    def base_rows(other_slots: list[int]) -> Tensor:
        packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
        base = packer.sequence(prompts[0])
        others = [
            packer.sequence(prompt, slot)
            for prompt, slot in zip(prompts[1:], other_slots, strict=True)
        ]
        work = [(one, 30) for one in (others[0], base, *others[1:])]
        with torch.inference_mode():
            return adapted.ours.decoder.forward(packer.batch(work, rows=range(30, 60)))

    slots = list(adapted.ours.slot_of.values())
    plain = base_rows([0, 0, 0])
    for mix in ([slots[0]] * 3, slots[1:4], [slots[4], 0, slots[2]]):
        assert torch.equal(base_rows(mix), plain)


def test_only_the_wanted_rows_are_returned(adapted: Adapted) -> None:
    rng = random.Random(2)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    slot = adapted.ours.slot_of["r24-head"]
    one, two = packer.sequence(tokens_of(rng, 20), slot), packer.sequence(tokens_of(rng, 9))
    with torch.inference_mode():
        logits = adapted.ours.decoder.forward(packer.batch([(two, 9), (one, 20)], rows=[28, 8]))
    assert logits.dtype == torch.float32
    expected = torch.stack(
        [
            reference_logits(adapted.oracle, one.tokens, "r24-head")[-1],
            reference_logits(adapted.oracle, two.tokens)[-1],
        ]
    )
    assert worst_delta(logits, expected) <= TOLERANCE


def test_a_step_may_want_no_logits_at_all(adapted: Adapted) -> None:
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    sequence = packer.sequence([1, 2, 3], adapted.ours.slot_of["r4"])
    with torch.inference_mode():
        logits = adapted.ours.decoder.forward(packer.batch([(sequence, 3)], rows=[]))
    assert logits.shape == (0, 160)
