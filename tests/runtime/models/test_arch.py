"""Configs are read in a closed world: understood as transformers does, or refused by field name."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import layout_hash
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import DecoderArch, load_arch, module_path

# The fields of the published configuration of an 8B Llama 3.1, in the older form.
LLAMA31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def read(folder: Path, config: Any, generation: Any = None) -> DecoderArch:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_arch(folder)


def refused(folder: Path, config: Any, generation: Any = None) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        read(folder, config, generation)
    return caught.value


def test_a_published_config_is_read(tmp_path: Path) -> None:
    arch = read(tmp_path, LLAMA31, {"eos_token_id": [128009, 7], "temperature": 0.6})
    assert arch == DecoderArch(
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeSpec(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        tie_embeddings=False,
        max_positions=131072,
        dtype="bfloat16",
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009, 7),
        attention_scale=128**-0.5,
        windows=(None,) * 32,
    )
    assert arch.lora_groups[0].out_features == 4096 + 2 * 1024
    assert arch.lora_groups[0].slice_starts == (0, 4096, 5120)
    assert arch.lm_head_group.out_features == 128256


CLASSES: dict[str, Any] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
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


GEMMA3_1B: dict[str, Any] = {
    # The fields of a published configuration in the older form.
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}


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


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA31.items() if not key.endswith("_bias")}
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config |= {"sliding_window": 4096, "max_window_layers": 30}
    assert read(tmp_path, config).windows == (None,) * 32
    on = read(tmp_path, config | {"use_sliding_window": True})
    assert on.windows == (None,) * 30 + (4096,) * 2
    assert (on.qkv_bias, on.o_bias) == (True, False)


def test_yarn_is_read_with_its_defaults_and_stretches_the_context(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = LLAMA31 | {"max_position_embeddings": 40960, "rope_scaling": scaling}
    arch = read(tmp_path, config)
    assert arch.max_positions == 131072
    assert arch.rope == RopeSpec(
        500_000.0,
        "yarn",
        4.0,
        original_max_positions=32768,
        attention_factor=0.1 * math.log(4.0) + 1.0,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["MixtralForCausalLM"]),
        ("architectures", ["LlamaForCausalLM", "LlamaForCausalLM"]),
        ("architectures", None),
        ("architectures", [["LlamaForCausalLM"]]),
        ("model_type", "mistral"),
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("sliding_window", 4096),
        ("num_local_experts", 8),
        ("final_logit_softcapping", 30.0),
        ("torch_dtype", "float8_e4m3fn"),
        ("rope_scaling.rope_type", "proportional"),
        ("rope_scaling.rope_type", "dynamic"),
        ("rope_scaling.partial_rotary_factor", 0.5),
        ("rope_scaling.mrope_section", [1, 2]),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    config = json.loads(json.dumps(LLAMA31))
    parent, _, leaf = field.rpartition(".")
    (config[parent] if parent else config)[leaf] = value
    error = refused(tmp_path, config)
    assert error.reason is Reason.UNSUPPORTED_MODEL
    shown = "dtype" if field == "torch_dtype" else field
    assert shown in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", None),
        ("vocab_size", "32000"),
        ("num_hidden_layers", True),
        ("num_key_value_heads", 5),
        ("num_attention_heads", 3),
        ("head_dim", 33),
        ("rms_norm_eps", -1.0),
        ("rope_theta", float("inf")),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", 128256),
        ("eos_token_id", "end"),
        ("rope_scaling", "llama3"),
    ],
)
def test_values_that_cannot_be_right_are_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    error = refused(tmp_path, LLAMA31 | {field: value})
    assert error.reason is Reason.INVALID_CONFIG
    assert field in error.message


def test_mistrals_window_holds_in_every_layer(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA31.items() if not key.endswith("_bias")}
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert read(tmp_path, config).windows == (4096,) * 32
    assert read(tmp_path, config | {"sliding_window": None}).windows == (None,) * 32
    assert "attention_bias" in refused(tmp_path, config | {"attention_bias": True}).message
    assert "layer_types" in refused(tmp_path, config | {"layer_types": ["x"]}).message


def test_absent_and_broken_files_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(ReasonedError) as caught:
        load_arch(tmp_path)
    assert caught.value.reason is Reason.MALFORMED_ARTIFACT
    for text in ("", "{", "[]", "3", '"x"', "[" * 100_000, "{}" + " " * (2 << 20)):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ReasonedError) as caught:
            load_arch(tmp_path)
        assert caught.value.reason is Reason.MALFORMED_ARTIFACT
    assert refused(tmp_path, LLAMA31, generation=[]).reason is Reason.MALFORMED_ARTIFACT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from([*LLAMA31, "head_dim", "dtype", "extra"]), JSON))
def test_no_config_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with contextlib.suppress(ReasonedError):
        read(folder, LLAMA31 | changes)


def test_the_layout_hash_follows_shapes_only(tmp_path: Path) -> None:
    base = layout_hash(read(tmp_path, LLAMA31))
    assert (
        layout_hash(read(tmp_path, LLAMA31 | {"rope_theta": 1.0, "torch_dtype": "float32"})) == base
    )
    for field, value in {
        "num_hidden_layers": 31,
        "num_key_value_heads": 16,
        "intermediate_size": 14335,
        "vocab_size": 128257,
    }.items():
        assert layout_hash(read(tmp_path, LLAMA31 | {field: value})) != base


def test_module_paths_are_the_checkpoints() -> None:
    assert module_path(3, "q_proj") == "model.layers.3.self_attn.q_proj"
    assert module_path(0, "down_proj") == "model.layers.0.mlp.down_proj"
    assert module_path(None, "lm_head") == "lm_head"
