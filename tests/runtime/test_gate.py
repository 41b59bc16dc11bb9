"""The gate for the Llama family: mixed batches, late arrivals, chunks and preemption, every row.

The mutation tests break one thing at a time in what the engine is given, while the reference keeps
the original: each must make the gate fail, or the gate proves nothing about that thing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.gate import GateError, GateSettings
from tests.support.gate_runs import (
    edit_config,
    edit_weights,
    gate,
    ones,
    swap,
    zero,
)
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_llama

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
"""The sequences below are longer than the original length, so that the scaling bites."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    return make_llama(folder, seed=3, rope_parameters=ROPE, max_position_embeddings=128)


@pytest.fixture(scope="module")
def adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "r4": make_adapter(
            model_dir, folder / "r4", rank=4, target_modules=("q_proj", "v_proj"), seed=1
        ),
        "r8": make_adapter(model_dir, folder / "r8", rank=8, seed=2),
        "r16": make_adapter(
            model_dir,
            folder / "r16",
            rank=16,
            rslora=True,
            target_modules=("o_proj", "gate_proj", "down_proj", "lm_head"),
            seed=3,
        ),
        "r33": make_adapter(
            model_dir,
            folder / "r33",
            rank=33,
            rank_pattern={"model.layers.0.self_attn.k_proj": 5},
            alpha_pattern={"model.layers.1.mlp.up_proj": 3},
            seed=4,
        ),
    }


def test_every_row_of_mixed_batches_agrees_with_transformers_and_peft(
    model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    run, verdict = gate(model_dir, adapters, (model_dir, adapters), tmp_path)
    assert verdict.rows > 400
    assert run.engine.stats().preemptions == 0


def test_every_row_agrees_when_a_small_pool_forces_preemption(
    model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    settings = GateSettings(num_blocks=12, max_batch_tokens=24, max_chunk_tokens=8)
    run, _ = gate(model_dir, adapters, (model_dir, adapters), tmp_path, settings, count=60)
    assert run.engine.stats().preemptions > 5


def test_every_row_agrees_when_adapters_take_turns_on_few_pages(
    model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    settings = GateSettings(num_pages=4, max_running=6)
    gate(model_dir, adapters, (model_dir, adapters), tmp_path, settings)


@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": True, "attention_bias": False},
        {"num_key_value_heads": 1, "mlp_bias": False},
        {"num_key_value_heads": 4, "head_dim": 24},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    ],
    ids=["tied", "one kv head", "own head size", "linear rope"],
)
def test_every_row_agrees_for_the_variants_of_the_family(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    model = make_llama(tmp_path, seed=9, max_position_embeddings=128, **overrides)
    adapter = {"only": make_adapter(model, tmp_path / "only", rank=6, seed=8)}
    gate(model, adapter, (model, adapter), tmp_path, count=16)


def swap_kv_heads(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].roll(tensors[name].shape[0] // 2, dims=0).contiguous()


MODEL_MUTATIONS: dict[str, Callable[[Path], None]] = {
    "q bias dropped": zero("model.layers.0.self_attn.q_proj.bias"),
    "k bias dropped": edit_weights(
        # A constant added to all keys cancels in the softmax but for the rotation.
        lambda tensors: tensors["model.layers.0.self_attn.k_proj.bias"].zero_()
    ),
    "v bias dropped": zero("model.layers.0.self_attn.v_proj.bias"),
    "o bias dropped": zero("model.layers.2.self_attn.o_proj.bias"),
    "gate bias dropped": zero("model.layers.1.mlp.gate_proj.bias"),
    "up bias dropped": zero("model.layers.1.mlp.up_proj.bias"),
    "down bias dropped": zero("model.layers.1.mlp.down_proj.bias"),
    "input norm skipped": ones("model.layers.0.input_layernorm.weight"),
    "post attention norm skipped": ones("model.layers.2.post_attention_layernorm.weight"),
    "final norm skipped": ones("model.norm.weight"),
    "gate and up swapped": swap(
        "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    ),
    "kv heads in the wrong order": edit_weights(swap_kv_heads),
    "rms_norm_eps": edit_config(rms_norm_eps=1e-2),
    "rope theta": edit_config(rope_parameters=ROPE | {"rope_theta": 20_000.0}),
    "rope scaling ignored": edit_config(
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
    ),
    "rope factor": edit_config(rope_parameters=ROPE | {"factor": 5.0}),
    "rope original length": edit_config(
        rope_parameters=ROPE | {"original_max_position_embeddings": 64}
    ),
    "rope low frequency factor": edit_config(rope_parameters=ROPE | {"low_freq_factor": 0.5}),
    "rope high frequency factor": edit_config(rope_parameters=ROPE | {"high_freq_factor": 8.0}),
}


@pytest.mark.parametrize("mutation", sorted(MODEL_MUTATIONS))
def test_the_gate_notices_a_mutation_of_the_model(
    mutation: str, model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mutant = tmp_path / "mutant"
    shutil.copytree(model_dir, mutant)
    MODEL_MUTATIONS[mutation](mutant)
    with pytest.raises(GateError, match="differ"):
        gate(mutant, adapters, (model_dir, adapters), tmp_path, count=10)


ADAPTER_MUTATIONS: dict[str, dict[str, object]] = {
    "alpha": {"lora_alpha": 17},
    "rslora ignored": {"use_rslora": False},
    "alpha pattern ignored": {"alpha_pattern": {}},
}


@pytest.mark.parametrize(
    ("adapter", "mutation"),
    [("r8", "alpha"), ("r16", "rslora ignored"), ("r33", "alpha pattern ignored")],
)
def test_the_gate_notices_a_mutation_of_an_adapter(
    adapter: str, mutation: str, model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mutant = tmp_path / "mutant"
    shutil.copytree(adapters[adapter], mutant)
    path = mutant / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ADAPTER_MUTATIONS[mutation]))
    mutated = adapters | {adapter: mutant}
    with pytest.raises(GateError, match="differ"):
        gate(model_dir, mutated, (model_dir, adapters), tmp_path, count=10)


def test_the_gate_notices_an_adapter_under_anothers_name(
    model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    swapped = adapters | {"r4": adapters["r8"], "r8": adapters["r4"]}
    with pytest.raises(GateError, match="differ"):
        gate(model_dir, swapped, (model_dir, adapters), tmp_path, count=10)


def test_the_gate_notices_one_wrong_module_of_one_layer(
    model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mutant = tmp_path / "mutant"
    shutil.copytree(adapters["r8"], mutant)
    path = mutant / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"].mul_(1.01)
    save_file(tensors, path)
    with pytest.raises(GateError, match="differ"):
        gate(model_dir, adapters | {"r8": mutant}, (model_dir, adapters), tmp_path, count=10)
