"""Configs are read in a closed world: understood as transformers does, or refused by field name."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import layout_hash
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import DecoderArch, load_arch
from tests.support.published_configs import LLAMA31, read, refused


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


def test_a_variant_follows_the_length_a_sequence_may_reach() -> None:
    assert RopeSpec(1e4, "llama3", 8.0, original_max_positions=100).variant(1000) == 0
    longrope = RopeSpec(1e4, "longrope", original_max_positions=100)
    assert [longrope.variant(length) for length in (1, 100, 101, 999)] == [0, 0, 1, 1]
    dynamic = RopeSpec(1e4, "dynamic", 4.0, original_max_positions=100)
    assert [dynamic.variant(length) for length in (1, 100, 101, 399)] == [0, 0, 101, 399]


def test_dynamic_rope_stretches_the_context(tmp_path: Path) -> None:
    scaling = {"type": "dynamic", "factor": 2.5}
    config = LLAMA31 | {"max_position_embeddings": 2048, "rope_scaling": scaling}
    assert read(tmp_path, config).max_positions == 5120


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
        ("architectures", ["MambaForCausalLM"]),
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


def test_module_paths_are_the_checkpoints(tmp_path: Path) -> None:
    module_path = read(tmp_path, LLAMA31).module_path
    assert module_path(3, "q_proj") == "model.layers.3.self_attn.q_proj"
    assert module_path(0, "down_proj") == "model.layers.0.mlp.down_proj"
    assert module_path(None, "lm_head") == "lm_head"
