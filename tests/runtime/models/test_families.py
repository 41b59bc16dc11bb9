"""Each family's config is understood as its class in transformers means it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from graft_protocol.reasons import Reason
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import DecoderArch, load_arch
from tests.support.published_configs import GEMMA3_1B, LLAMA31, PHI4_MINI, read, refused

CLASSES: dict[str, Any] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "MixtralForCausalLM": MixtralConfig,
    "Qwen2MoeForCausalLM": Qwen2MoeConfig,
    "Qwen3MoeForCausalLM": Qwen3MoeConfig,
    "Phi3ForCausalLM": Phi3Config,
    "Gemma2ForCausalLM": Gemma2Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
}


def agrees(arch: DecoderArch, config: Any) -> None:
    """Compare what both understand, in transformers' own words."""
    assert arch.num_kv_heads == config.num_key_value_heads
    assert arch.max_positions == config.max_position_embeddings
    head_dim = getattr(config, "head_dim", None)
    assert arch.head_dim == (head_dim or config.hidden_size // config.num_attention_heads)
    assert arch.norm_eps == config.rms_norm_eps
    assert arch.tie_embeddings == config.tie_word_embeddings
    ropes = config.rope_parameters
    full = ropes.get("full_attention", ropes)
    assert arch.rope == RopeSpec(full["rope_theta"])
    local = ropes.get("sliding_attention")
    assert arch.local_rope == (RopeSpec(local["rope_theta"]) if local else None)
    window = getattr(config, "sliding_window", None)
    whole = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [whole] * config.num_hidden_layers
    assert list(arch.windows) == [window if kind == "sliding_attention" else None for kind in kinds]
    assert arch.logit_softcap == getattr(config, "final_logit_softcapping", None)
    assert arch.attention_softcap == getattr(config, "attn_logit_softcapping", None)
    scale = getattr(config, "query_pre_attn_scalar", arch.head_dim) ** -0.5
    assert arch.attention_scale == scale
    moe_agrees(arch, config)


def moe_agrees(arch: DecoderArch, config: Any) -> None:
    if not hasattr(config, "num_experts_per_tok"):
        assert arch.moe is None
        return
    assert arch.moe is not None
    assert arch.moe.num_experts == config.num_experts
    assert arch.moe.num_experts_per_token == config.num_experts_per_tok
    size = getattr(config, "moe_intermediate_size", config.intermediate_size)
    assert arch.moe.expert_size == size
    assert arch.moe.shared_size == getattr(config, "shared_expert_intermediate_size", 0)
    assert arch.moe.normalises == getattr(config, "norm_topk_prob", True)
    assert arch.qkv_bias == getattr(config, "qkv_bias", False)


@pytest.mark.parametrize("architecture", CLASSES)
def test_what_transformers_writes_is_read_as_transformers_means_it(
    tmp_path: Path, architecture: str
) -> None:
    config = CLASSES[architecture]()
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    arch = load_arch(tmp_path)
    agrees(arch, config)
    assert arch.eos_token_ids == ((config.eos_token_id,) if config.eos_token_id else ())
    assert arch.dtype == "float32"


@pytest.mark.parametrize("architecture", CLASSES)
def test_absent_fields_mean_what_the_familys_class_assumes(
    tmp_path: Path, architecture: str
) -> None:
    # Plain fields only, so that every default of the class counts.
    fields = {
        "hidden_size": 64,
        "num_attention_heads": 32,
        "num_hidden_layers": 7,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    expected = CLASSES[architecture](**fields)
    named = {"architectures": [architecture], "model_type": expected.model_type}
    agrees(read(tmp_path, fields | named), expected)


def test_a_published_config_with_local_and_global_layers_is_read(tmp_path: Path) -> None:
    arch = read(tmp_path, GEMMA3_1B)
    assert arch.windows[:7] == (512, 512, 512, 512, 512, None, 512)
    assert arch.rope == RopeSpec(1e6)
    assert arch.local_rope == RopeSpec(1e4)
    assert arch.tie_embeddings
    assert arch.embedding_scale == 1152**0.5


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("use_bidirectional_attention", True, Reason.UNSUPPORTED_MODEL),
        ("hidden_activation", "silu", Reason.UNSUPPORTED_MODEL),
        # Its class has the field, its attention ignores it.
        ("attn_logit_softcapping", 50.0, Reason.UNSUPPORTED_MODEL),
        ("layer_types", ["chunked_attention"] * 26, Reason.UNSUPPORTED_MODEL),
        ("layer_types", ["full_attention"], Reason.INVALID_CONFIG),
        ("sliding_window", None, Reason.INVALID_CONFIG),
        ("sliding_window_pattern", 0, Reason.INVALID_CONFIG),
        ("query_pre_attn_scalar", 0, Reason.INVALID_CONFIG),
    ],
)
def test_fields_of_gemma_are_checked_by_name(
    tmp_path: Path, field: str, value: object, reason: Reason
) -> None:
    error = refused(tmp_path, GEMMA3_1B | {field: value})
    assert error.reason is reason
    assert field in error.message


def test_a_published_config_with_fused_projections_is_read(tmp_path: Path) -> None:
    arch = read(tmp_path, PHI4_MINI)
    assert arch.rope == RopeSpec(
        10_000.0,
        "longrope",
        32.0,
        original_max_positions=4096,
        rotated_share=0.8,
        attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
        short_factors=(1.0,) * 4,
        long_factors=(1.0, 1.5, 4.0, 32.0),
    )
    assert arch.max_positions == 131072
    assert [part.module for group in arch.lora_groups for part in group.slices] == [
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    ]
    assert arch.module_path(0, "qkv_proj") == "model.layers.0.self_attn.qkv_proj"
    assert arch.module_path(0, "gate_up_proj") == "model.layers.0.mlp.gate_up_proj"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lm_head_bias", True),
        ("full_attn_mod", 2),
        ("partial_rotary_factor", 0.5),
        ("partial_rotary_factor", 1.5),
        ("rope_scaling.long_factor", [1.0]),
        ("rope_scaling.long_factor", [1.0, 1.0, 1.0, 0.0]),
        ("rope_scaling.short_factor", None),
        ("rope_scaling.short_mscale", 1.1),
    ],
)
def test_fields_of_phi_are_checked_by_name(tmp_path: Path, field: str, value: object) -> None:
    config = json.loads(json.dumps(PHI4_MINI))
    parent, _, leaf = field.rpartition(".")
    (config[parent] if parent else config)[leaf] = value
    assert leaf in refused(tmp_path, config).message


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA31.items() if not key.endswith("_bias")}
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config |= {"sliding_window": 4096, "max_window_layers": 30}
    assert read(tmp_path, config).windows == (None,) * 32
    on = read(tmp_path, config | {"use_sliding_window": True})
    assert on.windows == (None,) * 30 + (4096,) * 2
    assert (on.qkv_bias, on.o_bias) == (True, False)


def test_mistrals_window_holds_in_every_layer(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA31.items() if not key.endswith("_bias")}
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert read(tmp_path, config).windows == (4096,) * 32
    assert read(tmp_path, config | {"sliding_window": None}).windows == (None,) * 32
    assert "attention_bias" in refused(tmp_path, config | {"attention_bias": True}).message
    assert "layer_types" in refused(tmp_path, config | {"layer_types": ["x"]}).message


MOE: dict[str, Any] = {
    key: value
    for key, value in LLAMA31.items()
    if not key.endswith("_bias") and key != "rope_scaling"
}
MIXTRAL = MOE | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
QWEN_MOE = MOE | {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}


@pytest.mark.parametrize(
    ("config", "field", "value", "reason"),
    [
        (MIXTRAL, "num_experts_per_tok", 9, Reason.INVALID_CONFIG),
        (MIXTRAL, "num_local_experts", 0, Reason.INVALID_CONFIG),
        (MIXTRAL, "norm_topk_prob", False, Reason.UNSUPPORTED_MODEL),
        (MIXTRAL, "moe_intermediate_size", 8, Reason.UNSUPPORTED_MODEL),
        (QWEN_MOE, "decoder_sparse_step", 2, Reason.UNSUPPORTED_MODEL),
        (QWEN_MOE, "mlp_only_layers", [0], Reason.UNSUPPORTED_MODEL),
        (QWEN_MOE, "use_sliding_window", True, Reason.UNSUPPORTED_MODEL),
        (QWEN_MOE, "layer_types", ["sliding_attention"] * 32, Reason.UNSUPPORTED_MODEL),
        (QWEN_MOE, "n_shared_experts", 2, Reason.UNSUPPORTED_MODEL),
    ],
)
def test_fields_of_experts_are_checked_by_name(
    tmp_path: Path, config: dict[str, Any], field: str, value: object, reason: Reason
) -> None:
    assert read(tmp_path, config).moe is not None
    error = refused(tmp_path, config | {field: value})
    assert error.reason is reason
    assert field in error.message


def test_what_every_token_passes_through_can_be_adapted(tmp_path: Path) -> None:
    def modules(config: dict[str, Any]) -> list[str]:
        arch = read(tmp_path, config)
        return [
            arch.module_path(0, part.module).removeprefix("model.layers.0.")
            for group in arch.lora_groups[2:]
            for part in group.slices
        ]

    assert modules(MIXTRAL) == []
    assert modules(QWEN_MOE) == [
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert.down_proj",
    ]
