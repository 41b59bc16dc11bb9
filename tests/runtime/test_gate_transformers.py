"""The gate for models that transformers computes over our cache, with adapters on their linears."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.family_case import Case, CaseMaker, mutations
from tests.support.gate_runs import edit_config, zero

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
WINDOW = 12

CASES: dict[str, Case] = {
    "olmo2": Case(
        "olmo2",
        mutations={"q norm skipped": zero("model.layers.1.self_attn.q_norm.weight")},
    ),
    "granite": Case(
        "granite",
        {
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
            "embedding_multiplier": 1.5,
            "logits_scaling": 1.3,
        },
        {"logits_scaling": edit_config(logits_scaling=1.2)},
    ),
    "gpt_neox": Case(
        "gpt_neox",
        {"rotary_pct": 0.5},
        {"rotary_pct": edit_config(rope_parameters={"partial_rotary_factor": 1.0})},
        attention=("query_key_value",),
        all_linear=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ends=("dense", "dense_4h_to_h", "lm_head"),
    ),
    "stablelm": Case(
        "stablelm",
        {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
        {"q bias dropped": zero("model.layers.1.self_attn.q_proj.bias")},
    ),
    "cohere2": Case(
        "cohere2",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "logit_scale": 1.0,
        },
        {
            "sliding_window": edit_config(sliding_window=WINDOW + 1),
            "layer_types": edit_config(layer_types=["full_attention"] * 3),
        },
    ),
    "starcoder2": Case(
        "starcoder2",
        {"sliding_window": WINDOW, "hidden_act": "gelu_pytorch_tanh"},
        {
            "bias dropped": zero("model.layers.1.mlp.c_fc.bias"),
            "window ignored": edit_config(sliding_window=None),
        },
        all_linear=(*ATTENTION, "c_fc", "c_proj"),
        ends=("o_proj", "c_proj", "lm_head"),
    ),
    "opt": Case(
        "opt",
        {"ffn_dim": 112, "word_embed_proj_dim": 64, "tie_word_embeddings": False},
        {"positions": zero("model.decoder.embed_positions.weight")},
        all_linear=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ends=("out_proj", "fc2", "lm_head"),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CaseMaker:
    return CaseMaker(CASES, tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_mixed_batches_agrees_with_transformers_and_peft(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).agrees(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_every_row_agrees_when_a_small_pool_forces_preemption(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).agrees_when_preempted(tmp_path)


@pytest.mark.parametrize(("name", "mutation"), mutations(CASES))
def test_the_gate_notices_a_mutation(
    name: str, mutation: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).differs_when_spoilt(mutation, tmp_path)
