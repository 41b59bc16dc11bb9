"""When an adapter's base model is worth a warning: names of repositories, and no path ever."""

import json
from pathlib import Path

import pytest

from graft_runtime.adapters.base_name import is_other_model, other_base
from graft_runtime.adapters.peft_config import CONFIG_FILE

SERVED = "meta-llama/Llama-3.1-8B-Instruct"
OTHERS = [
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "Qwen/Qwen2.5-7B",
    "unsloth/gemma-2-9b-bnb-4bit",
]
SAME = [
    SERVED,
    "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "a-mirror/llama-3.1-8b-instruct",
    "unsloth/Meta-Llama-3.1-8B-Instruct-unsloth-bnb-4bit",
    "somebody/Llama-3.1-8B-Instruct-AWQ",
    "somebody/Llama-3.1-8B-Instruct-GPTQ-Int4",
    "models/Llama-3.1-8B-Instruct",
]
PATHS = [
    "",
    "gpt2",
    "/data/llama",
    "./llama/base",
    "../base",
    "~/models/x",
    "models/base",
    "Models/base",
    "output/checkpoint-500",
    "my-run/checkpoint-500",
    "outputs_dir/final",
    "checkpoints/last",
    "work/models/llama",
    "workspace/llama",
    "C:\\models\\llama",
    "s3://bucket/llama",
    "https://example.com/llama",
    "org/name@revision",
    "org/name/",
    "org/na me",
]


@pytest.mark.parametrize("named", OTHERS)
def test_another_repository_is_another_model(named: str) -> None:
    assert is_other_model(named, SERVED)


@pytest.mark.parametrize("named", SAME)
def test_owner_case_and_the_form_of_the_weights_make_no_other_model(named: str) -> None:
    assert not is_other_model(named, SERVED)


@pytest.mark.parametrize("named", PATHS)
def test_what_may_be_a_path_is_never_compared(named: str) -> None:
    assert not is_other_model(named, SERVED)
    assert not is_other_model(SERVED, named)


def config(folder: Path, text: str) -> Path:
    (folder / CONFIG_FILE).write_text(text)
    return folder


def test_a_warning_names_both(tmp_path: Path) -> None:
    folder = config(tmp_path, json.dumps({"base_model_name_or_path": OTHERS[0]}))
    warning = other_base(folder, f"hf://{SERVED}@main")
    assert OTHERS[0] in warning
    assert SERVED in warning


@pytest.mark.parametrize("uri", ["s3://bucket/llama", "file:///models/llama", "pvc://models/a", ""])
def test_a_model_that_comes_from_no_hub_is_not_compared(uri: str, tmp_path: Path) -> None:
    folder = config(tmp_path, json.dumps({"base_model_name_or_path": OTHERS[0]}))
    assert other_base(folder, uri) == ""


@pytest.mark.parametrize(
    "text", ["{}", "{", "[]", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 1}']
)
def test_a_config_that_says_nothing_gives_no_warning(text: str, tmp_path: Path) -> None:
    assert other_base(config(tmp_path, text), f"hf://{SERVED}") == ""
    (tmp_path / CONFIG_FILE).unlink()
    assert other_base(tmp_path, f"hf://{SERVED}") == ""
