import pytest

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.selection import Selection, adapter_files, model_files


def files(*names: str) -> list[SourceFile]:
    return [SourceFile(name, 1, None) for name in names]


def refusal(select: Selection, *names: str) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        select(files(*names))
    return caught.value


def test_an_adapter_is_its_config_and_its_safetensors_files() -> None:
    found = adapter_files(
        files("README.md", "adapter_model.safetensors", "x.py", "adapter_config.json", "y.bin")
    )
    assert [file.name for file in found] == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "a.pt", "a.PTH", "a.pkl", "a.gguf", "a.zip", "a.tar.gz", "a.ckpt"],
)
@pytest.mark.parametrize("select", [adapter_files, model_files])
def test_weights_in_an_unsafe_format_are_refused_by_name(select: Selection, name: str) -> None:
    error = refusal(select, "adapter_config.json", "config.json", name)
    assert error.reason is Reason.UNSAFE_FORMAT
    assert name in error.message


def test_a_missing_config_is_named() -> None:
    error = refusal(adapter_files, "adapter_model.safetensors")
    assert error.reason is Reason.MALFORMED_ARTIFACT
    assert "adapter_config.json" in error.message


def test_an_empty_source_is_not_found() -> None:
    assert refusal(adapter_files).reason is Reason.SOURCE_NOT_FOUND


def test_a_folder_without_weights_is_malformed() -> None:
    assert refusal(adapter_files, "adapter_config.json").reason is Reason.MALFORMED_ARTIFACT


@pytest.mark.parametrize("name", [".hidden.safetensors", "a b.safetensors", "\n.safetensors"])
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    error = refusal(adapter_files, "adapter_config.json", name)
    assert error.reason is Reason.UNSAFE_PATH


def test_a_model_is_what_the_runtime_reads() -> None:
    found = model_files(
        files(
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "pytorch_model.bin",
            "modeling_custom.py",
            "README.md",
        )
    )
    assert [file.name for file in found] == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
