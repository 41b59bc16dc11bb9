"""What Graft does not do, as peft itself saves it: refused by name, before anything is touched."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from graft_protocol.reasons import REASONS, Reason
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import DecoderArch
from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.selection import adapter_files
from tests.support.tiny_models import load_reference

TARGETS = ["q_proj", "v_proj"]


def lora(**fields: Any) -> Callable[[], PeftConfig]:
    """Describe a LoRA with one thing that is not the default."""
    merged = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | fields
    return lambda: LoraConfig(**merged)


def other(name: str, **fields: Any) -> Callable[[], PeftConfig]:
    """Describe a tuning method that is no LoRA."""
    return lambda: getattr(peft, f"{name}Config")(task_type="CAUSAL_LM", **fields)


REFUSED: dict[str, tuple[Callable[[], PeftConfig], str]] = {
    "use_dora": (lora(use_dora=True), "use_dora"),
    "bias all": (lora(bias="all"), "bias"),
    "bias of the adapted layers": (lora(bias="lora_only"), "bias"),
    "lora_bias": (lora(lora_bias=True), "lora_bias"),
    "modules_to_save": (lora(modules_to_save=["lm_head"]), "modules_to_save"),
    "trainable tokens": (lora(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "layer_replication": (lora(layer_replication=[(0, 2), (1, 2)]), "layer_replication"),
    "alora": (lora(alora_invocation_tokens=[5]), "alora_invocation_tokens"),
    "exclude_modules": (lora(exclude_modules=["0.self_attn.q_proj"]), "exclude_modules"),
    "layers_to_transform": (lora(layers_to_transform=[0]), "layers_to_transform"),
    "pissa": (lora(init_lora_weights="pissa"), "init_lora_weights"),
    "olora": (lora(init_lora_weights="olora"), "init_lora_weights"),
    "target_parameters": (
        lora(target_modules=["v_proj"], target_parameters=["k_proj.weight"]),
        "target_parameters",
    ),
    "weight tying": (lora(ensure_weight_tying=True), "ensure_weight_tying"),
    "AdaLora": (
        other("AdaLora", init_r=4, target_r=2, total_step=10, target_modules=TARGETS),
        "peft_type",
    ),
    "IA3": (other("IA3", target_modules=TARGETS, feedforward_modules=[]), "peft_type"),
    "LoHa": (other("LoHa", r=4, target_modules=TARGETS), "peft_type"),
    "LoKr": (other("LoKr", r=4, target_modules=TARGETS), "peft_type"),
    "OFT": (other("OFT", oft_block_size=4, target_modules=TARGETS), "peft_type"),
    "VeRA": (other("Vera", r=4, target_modules=["q_proj"]), "peft_type"),
    "prompt tuning": (other("PromptTuning", num_virtual_tokens=3), "peft_type"),
    "prefix tuning": (other("PrefixTuning", num_virtual_tokens=3), "peft_type"),
    "layer norms": (other("LNTuning", target_modules=["input_layernorm"]), "peft_type"),
}


@pytest.fixture(scope="module")
def save(base_model: Path) -> Callable[[PeftConfig, Path], Path]:
    """Let peft make an adapter of a kind and save it as it saves such."""

    def _save(config: PeftConfig, folder: Path) -> Path:
        base: PreTrainedModel = load_reference(base_model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's advice on unusual configs
            model: PeftModel = get_peft_model(base, config)
            model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        return folder

    return _save


def refusal(folder: Path, arch: DecoderArch) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        validate_adapter(folder, arch, max_rank=64)
    assert REASONS[caught.value.reason].retry == "terminal"
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_saves_and_graft_does_not_do_is_refused_by_name(
    name: str, save: Callable[[PeftConfig, Path], Path], arch: DecoderArch, tmp_path: Path
) -> None:
    make, field = REFUSED[name]
    error = refusal(save(make(), tmp_path), arch)
    assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert field in error.message


def test_an_adapted_embedding_is_refused_by_its_tensor(
    save: Callable[[PeftConfig, Path], Path], arch: DecoderArch, tmp_path: Path
) -> None:
    config = lora(target_modules=["q_proj", "embed_tokens"])()
    error = refusal(save(config, tmp_path), arch)
    assert error.reason is Reason.UNSUPPORTED_TARGET
    assert "embed" in error.message


def test_a_pattern_that_peft_would_run_is_refused_by_its_field(
    save: Callable[[PeftConfig, Path], Path], arch: DecoderArch, tmp_path: Path
) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        config = lora(**{field: {r"model\.layers\.0\..*": 2}})()
        error = refusal(save(config, tmp_path / field), arch)
        assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
        assert field in error.message


def test_weights_that_peft_saves_as_a_pickle_are_never_downloaded(
    base_model: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_reference(base_model), lora()())
        model.save_pretrained(tmp_path, safe_serialization=False)
    listed = [SourceFile(path.name, path.stat().st_size, None) for path in tmp_path.iterdir()]
    with pytest.raises(ReasonedError) as caught:
        adapter_files(listed)
    assert caught.value.reason is Reason.UNSAFE_FORMAT
    assert "adapter_model.bin" in caught.value.message
