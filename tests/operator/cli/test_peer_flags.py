"""Command lines of other servers, as what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from graft_operator.cli.peer_flags import read_environment, read_flags
from graft_operator.cli.serve import ServeOptions, as_uri, manifests
from graft_operator.resources.v1alpha1 import InferenceService


def served(
    *arguments: str, environment: dict[str, str] | None = None, model: str | None = "s3://b/m"
) -> tuple[InferenceService, list[dict[str, Any]], int]:
    options, port = ServeOptions(model).with_peers(arguments, environment or {}, None)
    service, *adapters = manifests(options)
    return InferenceService.model_validate(service), adapters, port


def test_vllms_flags_become_the_services_fields() -> None:
    service, adapters, port = served(
        *("--served-model-name", "chat", "--port=9001", "--dtype", "bfloat16"),
        *("--max-model-len", "8K", "--max_num_seqs", "32", "--max-num-batched-tokens", "2048"),
        *("--enable-lora", "--max-lora-rank", "32", "-tp", "1", "--enable-auto-tool-choice"),
        *("--lora-modules", "a=s3://b/a", '{"name": "b", "path": "s3://b/b"}'),
    )
    spec = service.spec
    assert (spec.model.served_name, spec.model.dtype, spec.model.max_model_len) == (
        "chat",
        "bfloat16",
        8192,
    )
    assert (spec.engine.max_running, spec.engine.max_batch_tokens) == (32, 2048)
    assert spec.adapters.max_rank == 32
    assert port == 9001
    assert [each["spec"]["source"]["uri"] for each in adapters] == ["s3://b/a", "s3://b/b"]


def test_tgis_variables_count_where_no_model_is_named() -> None:
    environment = {
        "MODEL_ID": "org/model",
        "PORT": "80",
        "MAX_TOTAL_TOKENS": "4096",
        "PAYLOAD_LIMIT": "1000000",
        "LORA_ADAPTERS": "org/one,two=s3://b/two",
        "NUM_SHARD": "1",
        "CUDA_GRAPHS": "0",
    }
    service, adapters, port = served(environment=environment, model=None)
    assert service.spec.model.uri == "hf://org/model"
    assert service.spec.model.max_model_len == 4096
    assert service.spec.server.max_body_bytes == 1_000_000
    assert port == 80
    assert [each["spec"]["servedName"] for each in adapters] == ["org/one", "two"]
    service, adapters, port = served(environment=environment)
    assert (service.spec.model.uri, adapters, port) == ("s3://b/m", [], 8000)
    assert read_environment({"PORT": "80"}) is None


def test_a_watermarks_key_and_strength_are_the_services() -> None:
    service, _, _ = served(
        "--watermark-gamma", "0.5", "--watermark-delta=3", "--watermark-key", "7"
    )
    server = service.spec.server
    assert server.watermark_greenlist_ratio == 0.5
    assert (server.watermark_bias, server.watermark_hashing_key) == (3, 7)
    environment = {"MODEL_ID": "org/model", "WATERMARK_GAMMA": "0.4", "WATERMARK_DELTA": "1.5"}
    service, _, _ = served(environment=environment, model=None)
    server = service.spec.server
    assert (server.watermark_greenlist_ratio, server.watermark_bias) == (0.4, 1.5)
    with pytest.raises(click.UsageError, match="watermark-key"):
        served("--watermark-key", "secret")


def test_what_changes_nothing_is_told() -> None:
    wanted = read_flags(["--swap-space", "4", "--enforce-eager"])
    assert wanted.without_effect == ["--swap-space", "--enforce-eager"]
    launched = read_environment({"MODEL_ID": "m", "MAX_BEST_OF": "4", "USAGE_STATS": "off"})
    assert launched is not None
    assert launched.without_effect == ["MAX_BEST_OF", "USAGE_STATS"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trust-remote-code"], "--trust-remote-code is not supported"),
        (["-tp", "2"], "-tp 2 is not supported"),
        (["--quantization", "awq"], "--quantization is not supported"),
        (["--chat-template", "x.jinja"], "--chat-template is not supported"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is not supported"),
        (["--tool-call-parser", "pythonic"], "--tool-call-parser pythonic is not supported"),
        (["--no-enable-prefix-caching"], "--no-enable-prefix-caching is not supported"),
        (["--dtype", "half"], "--dtype: 'half' must be one of"),
        (["--max-model-len", "many"], "--max-model-len: 'many' is not a number"),
        (["--max-model-len"], "--max-model-len takes one value"),
        (["--served-model-name", "a", "b"], "--served-model-name takes one value"),
        (["--enable-lora", "yes"], "--enable-lora takes no value"),
        (["--lora-modules", "{}"], "is not an object with"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read_flags(arguments)
    assert message in caught.value.format_message()


@pytest.mark.parametrize(
    "name", ["QUANTIZE", "TRUST_REMOTE_CODE", "API_KEY", "KV_CACHE_DTYPE", "CORS_ALLOW_ORIGIN"]
)
def test_a_variable_that_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(click.UsageError, match=name):
        read_environment({"MODEL_ID": "m", name: "true"})


def test_a_model_must_be_named_somewhere() -> None:
    with pytest.raises(click.UsageError, match="MODEL"):
        ServeOptions(None).with_peers([], {}, None)


def test_a_place_is_a_path_a_uri_or_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_uri("org/model") == "hf://org/model"
    (tmp_path / "org/model").mkdir(parents=True)
    assert as_uri("org/model") == (tmp_path / "org/model").as_uri()
    assert as_uri("gs://b/m") == "gs://b/m"
