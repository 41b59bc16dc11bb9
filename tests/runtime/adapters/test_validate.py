import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graft_protocol.reasons import REASONS, Reason
from graft_runtime.adapters.validate import ValidAdapter, validate_adapter
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import DecoderArch
from tests.support.peft_adapters import make_adapter
from tests.support.spoiled_adapters import (
    CONFIG,
    WEIGHTS,
    cast,
    copy_adapter,
    first,
    with_config,
    with_weights,
)

STEM = "base_model.model.model.layers.0"
Tensors = dict[str, Tensor]


def validate(folder: Path, arch: DecoderArch, max_rank: int = 64) -> ValidAdapter:
    (folder / "README.md").unlink(missing_ok=True)  # peft writes one; the cache never holds it
    return validate_adapter(folder, arch, max_rank=max_rank)


def refusal(folder: Path, arch: DecoderArch, max_rank: int = 64) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        validate(folder, arch, max_rank)
    assert REASONS[caught.value.reason].retry == "terminal"
    return caught.value


def test_a_good_adapter_is_described(base_model: Path, arch: DecoderArch, tmp_path: Path) -> None:
    folder = make_adapter(
        base_model,
        tmp_path / "x",
        rank=8,
        alpha=16,
        target_modules=["q_proj", "v_proj", "lm_head"],
        rank_pattern={"model.layers.1.self_attn.v_proj": 24},
        rslora=True,
    )
    adapter = validate(folder, arch)
    assert adapter.rank == 24
    assert adapter.target_modules == ("lm_head", "q_proj", "v_proj")
    assert [(update.module, update.rank) for update in adapter.updates] == [
        ("model.layers.0.self_attn.q_proj", 8),
        ("model.layers.0.self_attn.v_proj", 8),
        ("model.layers.1.self_attn.q_proj", 8),
        ("model.layers.1.self_attn.v_proj", 24),
        ("lm_head", 8),
    ]
    assert adapter.updates[0].scaling == 16 / 8**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_of_training_are_read(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, dtype: torch.dtype
) -> None:
    assert validate(with_weights(peft_adapter, tmp_path / "x", cast(dtype)), arch).rank == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_other_dtypes_are_refused(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = with_weights(peft_adapter, tmp_path / "x", cast(dtype))
    assert refusal(folder, arch).reason is Reason.UNSUPPORTED_DTYPE


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, name: str
) -> None:
    folder = copy_adapter(peft_adapter, tmp_path / "x")
    (folder / name).unlink()
    error = refusal(folder, arch)
    assert error.reason is Reason.MALFORMED_ARTIFACT
    assert name in error.message


def test_weights_that_nobody_would_load_are_refused(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    folder = copy_adapter(peft_adapter, tmp_path / "x")
    (folder / "more.safetensors").write_bytes(b"")
    error = refusal(folder, arch)
    assert error.reason is Reason.UNUSED_TENSORS
    assert "more.safetensors" in error.message


def test_a_pickle_under_the_name_of_a_safetensors_file_is_not_run(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    folder = copy_adapter(peft_adapter, tmp_path / "x")
    torch.save({"x": torch.zeros(3)}, folder / WEIGHTS)
    assert refusal(folder, arch).reason is Reason.MALFORMED_ARTIFACT


def drop(factor: str) -> object:
    def change(tensors: Tensors) -> Tensors:
        del tensors[first(tensors, factor)]
        return tensors

    return change


def reshape(factor: str, rows: int, columns: int) -> object:
    def change(tensors: Tensors) -> Tensors:
        name = first(tensors, factor)
        old = tensors[name].shape
        tensors[name] = torch.ones(old[0] + rows, old[1] + columns)
        return tensors

    return change


def add(name: str, *shape: int) -> object:
    return lambda tensors: tensors | {name: torch.ones(*shape)}


def rename(before: str, after: str) -> object:
    return lambda tensors: {name.replace(before, after): tensor for name, tensor in tensors.items()}


SPOILED: dict[str, tuple[object, Reason]] = {
    "B without A": (drop("A"), Reason.SHAPE_MISMATCH),
    "A without B": (drop("B"), Reason.SHAPE_MISMATCH),
    "A of another width": (reshape("A", 0, 1), Reason.SHAPE_MISMATCH),
    "B of another width": (reshape("B", 1, 0), Reason.SHAPE_MISMATCH),
    "A of another rank than the config's": (reshape("A", 1, 0), Reason.SHAPE_MISMATCH),
    "B of another rank than the config's": (reshape("B", 0, 4), Reason.SHAPE_MISMATCH),
    "A with three dimensions": (
        lambda tensors: tensors | {first(tensors, "A"): torch.ones(4, 112, 1)},
        Reason.SHAPE_MISMATCH,
    ),
    "keys and values as wide as queries": (
        lambda tensors: (
            tensors
            | {
                f"{STEM}.self_attn.k_proj.lora_A.weight": torch.ones(4, 64),
                f"{STEM}.self_attn.k_proj.lora_B.weight": torch.ones(64, 4),
            }
        ),
        Reason.SHAPE_MISMATCH,
    ),
    "a layer that is not there": (rename("layers.1", "layers.2"), Reason.SHAPE_MISMATCH),
    "a layer of many digits": (rename("layers.1", "layers.99999999"), Reason.SHAPE_MISMATCH),
    "a negative layer": (rename("layers.1", "layers.-1"), Reason.UNSUPPORTED_TARGET),
    "a module that is not there": (rename("q_proj", "qkv_proj"), Reason.UNSUPPORTED_TARGET),
    "another family's names": (rename("model.layers", "transformer.h"), Reason.UNSUPPORTED_TARGET),
    "experts": (rename("mlp.down_proj", "mlp.experts.0.down_proj"), Reason.UNSUPPORTED_TARGET),
    "an embedding": (
        add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 160),
        Reason.UNSUPPORTED_TARGET,
    ),
    "DoRA": (
        add(f"{STEM}.self_attn.q_proj.lora_magnitude_vector", 64),
        Reason.UNSUPPORTED_ADAPTER_TYPE,
    ),
    "a bias": (add(f"{STEM}.self_attn.q_proj.lora_B.bias", 64), Reason.UNUSED_TENSORS),
    "a whole base weight": (add("base_model.model.lm_head.weight", 160, 64), Reason.UNUSED_TENSORS),
    "another adapter's name": (rename("lora_A.", "lora_A.default."), Reason.UNUSED_TENSORS),
    "no prefix": (rename("base_model.model.", ""), Reason.UNUSED_TENSORS),
    "an empty name": (add("", 1), Reason.UNUSED_TENSORS),
    "nothing at all": (lambda tensors: {}, Reason.UNSUPPORTED_TARGET),
    "one targeted module less": (
        lambda tensors: {
            name: tensor for name, tensor in tensors.items() if "layers.1" not in name
        },
        Reason.MALFORMED_ARTIFACT,
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_tensors_that_do_not_fit_are_refused(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, name: str
) -> None:
    change, reason = SPOILED[name]
    folder = with_weights(peft_adapter, tmp_path / "x", change)  # type: ignore[arg-type] # a change
    assert refusal(folder, arch).reason is reason


def test_a_rank_above_the_services_is_refused(peft_adapter: Path, arch: DecoderArch) -> None:
    (peft_adapter / "README.md").unlink(missing_ok=True)
    assert validate_adapter(peft_adapter, arch, max_rank=4).rank == 4
    error = refusal(peft_adapter, arch, max_rank=3)
    assert error.reason is Reason.RANK_TOO_LARGE


def test_a_rank_above_the_services_hidden_in_a_pattern_is_refused(
    base_model: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    pattern = {"model.layers.1.self_attn.q_proj": 40}
    folder = make_adapter(
        base_model, tmp_path / "x", rank=4, target_modules=["q_proj"], rank_pattern=pattern
    )
    assert refusal(folder, arch, max_rank=32).reason is Reason.RANK_TOO_LARGE


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "down_proj", "embed_tokens"], Reason.UNSUPPORTED_TARGET),
        (["q_proj", "down_proj", "nope"], Reason.UNSUPPORTED_TARGET),
        (["q_proj"], Reason.UNUSED_TENSORS),
        ([], Reason.UNUSED_TENSORS),
        (["q_proj", "down_proj", "v_proj"], Reason.MALFORMED_ARTIFACT),
    ],
)
def test_a_list_of_targets_that_the_tensors_do_not_bear_out_is_refused(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, targets: list[str], reason: Reason
) -> None:
    folder = with_config(peft_adapter, tmp_path / "x", target_modules=targets)
    assert refusal(folder, arch).reason is reason


def test_a_pattern_of_targets_is_ignored_for_the_tensors(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    folder = with_config(peft_adapter, tmp_path / "x", target_modules="(a+)+$")
    assert validate(folder, arch).target_modules == ("down_proj", "q_proj")


def test_a_copy_of_base_weights_is_explained(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    change = add("base_model.model.lm_head.base_layer.weight", 160, 64)
    folder = with_weights(peft_adapter, tmp_path / "x", change)  # type: ignore[arg-type] # a change
    assert "save_embedding_layers=False" in refusal(folder, arch).message


def test_a_message_shows_hostile_names_safely(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    name = "x\n\x1b[31m" + "y" * 5000
    folder = with_weights(peft_adapter, tmp_path / "x", add(name, 1))  # type: ignore[arg-type] # a change
    message = refusal(folder, arch).message
    assert len(message) < 300
    assert message.isprintable()


def test_every_module_of_the_model_has_a_place(
    base_model: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    modules = [part.module for group in arch.lora_groups for part in group.slices]
    folder = make_adapter(base_model, tmp_path / "x", target_modules=[*modules, "lm_head"])
    found = {update.module for update in validate(folder, arch).updates}
    assert found == {"lm_head"} | {
        arch.module_path(layer, module) for layer in range(arch.num_layers) for module in modules
    }
    assert set(json.loads((folder / CONFIG).read_text())["target_modules"]) == {*modules, "lm_head"}
