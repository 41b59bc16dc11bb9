"""The gate for every family beside Llama: the same traffic, the same bound, and its own mutations.

Windows, soft-caps and original rope lengths are small, so that the sequences below cross them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import load_arch
from tests.support.family_case import LAYER, WINDOW, Case, CaseMaker, Mutation, mutations
from tests.support.gate import GateSettings, start_engine
from tests.support.gate_runs import edit_config, edit_weights, ones, zero
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_model

QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

ORIGINAL = 32
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 6.0, 8.0],
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "truncate": False,
    "original_max_position_embeddings": ORIGINAL,
}


def edit_rope(rope: Mapping[str, Any], **fields: Any) -> Mutation:
    return edit_config(rope_parameters={**rope, **fields})


def swap_gate_and_up(tensors: dict[str, Tensor]) -> None:
    name = f"{LAYER}.mlp.gate_up_proj.weight"
    tensors[name] = tensors[name].roll(tensors[name].shape[0] // 2, dims=0).contiguous()


def swap_q_and_k(tensors: dict[str, Tensor]) -> None:
    name = f"{LAYER}.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name].roll(16, dims=0).contiguous()


GEMMA = {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
    "attention_bias": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 3.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
GEMMA_NORMS = {
    f"{norm} skipped": zero(f"{LAYER}.{norm}.weight")
    for norm in (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
}

CASES: dict[str, Case] = {
    "qwen2": Case(
        "qwen2",
        {"tie_word_embeddings": True},
        {
            "q bias dropped": zero(f"{LAYER}.self_attn.q_proj.bias"),
            "k bias dropped": zero(f"{LAYER}.self_attn.k_proj.bias"),
            "v bias dropped": zero(f"{LAYER}.self_attn.v_proj.bias"),
            "rms_norm_eps": edit_config(rms_norm_eps=1e-2),
            "rope_theta": edit_config(rope_parameters={"rope_theta": 5000.0}),
        },
    ),
    "qwen2 windows": Case(
        "qwen2",
        QWEN_WINDOWS,
        {
            "windows off": edit_config(use_sliding_window=False, layer_types=None),
            "sliding_window": edit_config(sliding_window=WINDOW + 1),
            "max_window_layers": edit_config(max_window_layers=2, layer_types=None),
            "layer_types": edit_config(
                layer_types=["sliding_attention", "sliding_attention", "full_attention"]
            ),
        },
    ),
    "qwen3": Case(
        "qwen3",
        {"head_dim": 24, "attention_bias": True},
        {
            "q norm skipped": ones(f"{LAYER}.self_attn.q_norm.weight"),
            "k norm skipped": ones(f"{LAYER}.self_attn.k_norm.weight"),
            "o bias dropped": zero(f"{LAYER}.self_attn.o_proj.bias"),
            "v bias dropped": zero(f"{LAYER}.self_attn.v_proj.bias"),
        },
    ),
    "mistral": Case(
        "mistral",
        {"sliding_window": WINDOW},
        {
            "window ignored": edit_config(sliding_window=None),
            "window too small": edit_config(sliding_window=WINDOW - 1),
            "window too large": edit_config(sliding_window=WINDOW + 1),
        },
    ),
    "phi3": Case(
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL},
        {
            "short factors": edit_rope(LONGROPE, short_factor=[1.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
            "long factors": edit_rope(LONGROPE, long_factor=[1.0, 1.0, 2.0, 3.0, 6.0, 8.5]),
            "factor on cosines": edit_rope(LONGROPE, attention_factor=1.3),
            "stretch": edit_rope(LONGROPE, factor=3.0),
            "original length": edit_config(original_max_position_embeddings=ORIGINAL + 9),
            "partial_rotary_factor": edit_config(
                rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}
            ),
            "gate and up swapped": edit_weights(swap_gate_and_up),
            "q and k swapped": edit_weights(swap_q_and_k),
        },
        attention=("qkv_proj",),
        all_linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "phi3 windows": Case(
        "phi3",
        {"sliding_window": WINDOW, "num_key_value_heads": 4},
        {"window ignored": edit_config(sliding_window=None)},
        attention=("qkv_proj",),
        all_linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "dynamic rope": Case(
        "llama",
        {"max_position_embeddings": ORIGINAL, "rope_parameters": DYNAMIC},
        {
            "ignored": edit_config(
                max_position_embeddings=128,
                rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            ),
            "factor": edit_rope(DYNAMIC, factor=5.0),
            "original length": edit_config(max_position_embeddings=ORIGINAL + 9),
        },
    ),
    "yarn rope": Case(
        "qwen2",
        {"rope_parameters": YARN},
        {
            "ignored": edit_config(rope_parameters={"rope_type": "default"}),
            "factor": edit_rope(YARN, factor=5.0),
            "attention_factor": edit_rope(YARN, attention_factor=1.0),
            "beta_fast": edit_rope(YARN, beta_fast=8.0),
            "beta_slow": edit_rope(YARN, beta_slow=0.2),
            "truncate": edit_rope(YARN, truncate=True),
            "original length": edit_rope(YARN, original_max_position_embeddings=2 * ORIGINAL),
        },
    ),
    "yarn rope, scaled twice": Case(
        "qwen2",
        {"rope_parameters": YARN | {"truncate": True, "mscale": 2.0, "mscale_all_dim": 0.5}},
        {
            "mscale": edit_rope(YARN, truncate=True, mscale=1.0, mscale_all_dim=0.5),
            "mscale_all_dim": edit_rope(YARN, truncate=True, mscale=2.0, mscale_all_dim=1.0),
        },
    ),
    "gemma2": Case(
        "gemma2",
        GEMMA | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 0.7},
        {
            "cap on attention ignored": edit_config(attn_logit_softcapping=None),
            "cap on attention": edit_config(attn_logit_softcapping=0.8),
            "cap on logits ignored": edit_config(final_logit_softcapping=None),
            "cap on logits": edit_config(final_logit_softcapping=2.1),
            "query_pre_attn_scalar": edit_config(query_pre_attn_scalar=24),
            "window ignored": edit_config(layer_types=["full_attention"] * 3),
            "windows in other layers": edit_config(
                layer_types=["full_attention", "sliding_attention", "sliding_attention"]
            ),
            "sliding_window": edit_config(sliding_window=WINDOW + 1),
            "attention bias dropped": zero(f"{LAYER}.self_attn.o_proj.bias"),
            **GEMMA_NORMS,
        },
    ),
    "gemma3": Case(
        "gemma3_text",
        GEMMA
        | {
            "final_logit_softcapping": 3.0,
            "rope_parameters": GEMMA3_ROPE,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        {
            "cap on logits ignored": edit_config(final_logit_softcapping=None),
            "q norm skipped": zero(f"{LAYER}.self_attn.q_norm.weight"),
            "k norm skipped": zero(f"{LAYER}.self_attn.k_norm.weight"),
            "global rope everywhere": edit_config(
                rope_parameters=GEMMA3_ROPE | {"sliding_attention": GEMMA3_ROPE["full_attention"]}
            ),
            "global rope not stretched": edit_config(
                rope_parameters=GEMMA3_ROPE
                | {"full_attention": {"rope_type": "default", "rope_theta": 3000.0}}
            ),
            "local rope theta": edit_config(
                rope_parameters=GEMMA3_ROPE
                | {"sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}
            ),
            "query_pre_attn_scalar": edit_config(query_pre_attn_scalar=24),
            "window ignored": edit_config(layer_types=["full_attention"] * 3),
            **GEMMA_NORMS,
        },
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


def test_an_adapter_of_split_projections_is_refused_by_name(
    made: CaseMaker, tmp_path: Path
) -> None:
    split = make_model("mistral", tmp_path, seed=1)
    adapter = make_adapter(split, tmp_path / "split", target_modules=("q_proj",))
    (adapter / "README.md").unlink()
    with pytest.raises(ReasonedError, match="q_proj") as caught:
        validate_adapter(adapter, load_arch(made("phi3").model_dir), max_rank=64)
    assert caught.value.reason is Reason.UNSUPPORTED_TARGET


def test_sequences_of_other_frequencies_share_no_prefix(made: CaseMaker, tmp_path: Path) -> None:
    one = made("phi3")
    run = start_engine(one.model_dir, one.adapters, tmp_path, GateSettings())
    prompt = list(range(5, 29))
    for max_tokens, hits in ((8, 0), (9, 0), (7, 16), (20, 32)):
        run.submit(prompt, max_tokens)
        run.finish()
        assert run.engine.stats().prefix_hits == hits
