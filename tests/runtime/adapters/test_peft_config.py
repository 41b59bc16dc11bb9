import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from graft_protocol.reasons import Reason
from graft_runtime.adapters.peft_config import PeftConfig, load_peft_config
from graft_runtime.adapters.peft_defaults import LORA_DEFAULTS
from graft_runtime.errors import ReasonedError


def load(tmp_path: Path, **fields: Any) -> PeftConfig:
    return load_text(tmp_path, json.dumps({"peft_type": "LORA", "r": 8} | fields))


def load_text(tmp_path: Path, text: str | bytes) -> PeftConfig:
    path = tmp_path / "adapter_config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_peft_config(path)


def refusal(tmp_path: Path, **fields: Any) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        load(tmp_path, **fields)
    assert len(caught.value.message) < 400
    return caught.value


def test_the_table_of_defaults_is_the_installed_pefts() -> None:
    defaults = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(LoraConfig)
        if field.name != "runtime_config"
    }
    assert dict(LORA_DEFAULTS) == defaults


def test_what_peft_saves_by_default_is_understood(tmp_path: Path) -> None:
    LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    config = load_peft_config(tmp_path / "adapter_config.json")
    assert (config.rank, config.alpha, config.use_rslora) == (16, 32.0, False)


def test_fields_about_the_past_do_not_matter(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        base_model_name_or_path="someone/else",
        revision="main",
        inference_mode=True,
        lora_dropout=0.1,
        peft_version="0.21.2",
        auto_mapping={"base_model_class": "LlamaForCausalLM"},
        init_lora_weights="gaussian",
        task_type="CAUSAL_LM",
    )
    assert config.rank == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1]),
        ("arrow_config", {"top_k": 3}),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("corda_config", {}),
        ("ensure_weight_tying", True),
        ("exclude_modules", ["x"]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", 1),
        ("kasa_config", {"x": 1}),
        ("layer_replication", [[0, 1]]),
        ("layers_pattern", "layers"),
        ("layers_to_transform", [0]),
        ("loftq_config", {"loftq_bits": 4}),
        ("lora_bias", True),
        ("lora_ga_config", {"x": 1}),
        ("megatron_config", {"x": 1}),
        ("modules_to_save", ["lm_head"]),
        ("monteclora_config", {"x": 1}),
        ("peft_type", "ADALORA"),
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("qalora_group_size", 32),
        ("target_parameters", ["x"]),
        ("task_type", "SEQ_CLS"),
        ("trainable_token_indices", [1]),
        ("use_bdlora", {"x": 1}),
        ("use_dora", True),
        ("use_dora", 1),
        ("use_qalora", True),
        ("velora_config", {"x": 1}),
        ("a_field_of_the_future", True),
        ("a_field_of_the_future", 0),
        ("a_field_of_the_future", "x"),
    ],
)
def test_what_graft_does_not_do_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    error = refusal(tmp_path, **{field: value})
    assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert field in error.message


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_a_field_of_the_future_that_is_off_is_accepted(tmp_path: Path, value: object) -> None:
    assert load(tmp_path, a_field_of_the_future=value).rank == 8


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("r", "0"),
        ("r", "-1"),
        ("r", "true"),
        ("r", "8.0"),
        ("r", '"8"'),
        ("r", "null"),
        ("r", "10000000000"),
        ("lora_alpha", "0"),
        ("lora_alpha", "NaN"),
        ("lora_alpha", "Infinity"),
        ("lora_alpha", "1e38"),
        ("lora_alpha", "1e999"),
        ("lora_alpha", '"16"'),
        ("lora_alpha", "null"),
        ("use_rslora", "1"),
        ("rank_pattern", "[1]"),
        ("rank_pattern", '{"q_proj": 0}'),
        ("alpha_pattern", '{"q_proj": NaN}'),
        ("target_modules", "[1]"),
        ("target_modules", "7"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused(tmp_path: Path, field: str, text: str) -> None:
    with pytest.raises(ReasonedError) as caught:
        load_text(tmp_path, f'{{"peft_type": "LORA", "{field}": {text}}}')
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert field in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "[]",
        "null",
        b"\xff\xfe",
        '{"peft_type": "LORA", "r": 1, "r": 2}',
        '{"a":' * 100_000,
        '{"r": ' + "1" * 5000 + "}",
        '{"x": "' + "y" * (1 << 20) + '"}',
    ],
)
def test_a_malformed_config_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ReasonedError) as caught:
        load_text(tmp_path, text)
    assert caught.value.reason is Reason.MALFORMED_ARTIFACT


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", [".*", "q_proj|k_proj", "(a+)+$", "^model", "q.proj?", ""])
def test_a_pattern_is_never_run(tmp_path: Path, field: str, key: str) -> None:
    error = refusal(tmp_path, **{field: {key: 4}})
    assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert field in error.message


NAMES = st.lists(st.sampled_from(["model", "layers", "0", "q_proj", "up"]), min_size=1, max_size=4)


@given(keys=st.lists(NAMES.map(".".join), unique=True, max_size=4), module=NAMES.map(".".join))
def test_exact_patterns_mean_what_they_mean_to_peft(keys: list[str], module: str) -> None:
    config = PeftConfig(
        rank=99,
        alpha=1.0,
        use_rslora=False,
        rank_pattern={key: number for number, key in enumerate(keys, start=1)},
        alpha_pattern={},
        target_modules=None,
    )
    expected = get_pattern_key([re.escape(key) for key in keys], module)
    ranks = {re.escape(key): number for number, key in enumerate(keys, start=1)}
    assert config.rank_of(module) == ranks.get(expected, 99)


def test_the_scaling_is_pefts(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"k_proj": 4}, "alpha_pattern": {"k_proj": 64}}
    plain = load(tmp_path, r=16, lora_alpha=32, **patterns)
    assert plain.scaling_of("model.layers.0.self_attn.q_proj") == 2.0
    assert plain.scaling_of("model.layers.0.self_attn.k_proj") == 16.0
    stable = load(tmp_path, r=16, lora_alpha=32, use_rslora=True, **patterns)
    assert stable.scaling_of("model.layers.0.self_attn.q_proj") == 32 / math.sqrt(16)
    assert stable.scaling_of("model.layers.0.self_attn.k_proj") == 64 / math.sqrt(4)


def test_a_pattern_as_target_is_left_to_the_tensors(tmp_path: Path) -> None:
    assert load(tmp_path, target_modules="(a+)+$").target_modules is None
    assert load(tmp_path, target_modules=["q_proj"]).target_modules == ("q_proj",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=3,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(LORA_DEFAULTS)) | st.text(max_size=6), JSON)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields=FIELDS)
def test_any_config_is_understood_or_gets_a_reason(tmp_path: Path, fields: dict[str, Any]) -> None:
    try:
        config = load(tmp_path, **fields)
    except ReasonedError:
        return
    assert math.isfinite(config.scaling_of("model.layers.0.self_attn.q_proj"))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_understood_or_get_a_reason(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ReasonedError):
        load_text(tmp_path, raw)
