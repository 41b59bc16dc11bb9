"""What Graft does not do, as peft itself saves it: refused by name, before anything is touched."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import CordaConfig
from peft.utils import PeftType
from transformers import PreTrainedModel

from graft_protocol.reasons import REASONS, Reason
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import DecoderArch
from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.selection import adapter_files
from tests.support.spoiled_adapters import copy_adapter
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
    "a pattern of layers": (
        lora(layers_to_transform=[0], layers_pattern="layers"),
        "layers_pattern",
    ),
    "quick pissa": (lora(init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    "LoRA-GA": (
        lora(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()),
        "init_lora_weights",
    ),
    "KaSA": (lora(kasa_config=peft.KasaConfig()), "kasa_config"),
    "VeLoRA": (lora(velora_config=peft.VeloraConfig(num_groups=4)), "velora_config"),
    "MonteCLoRA": (lora(monteclora_config=peft.MontecloraConfig()), "monteclora_config"),
    "block diagonal": (
        lora(use_bdlora=peft.BdLoraConfig(target_modules_bd_a=TARGETS, nblocks=2)),
        "use_bdlora",
    ),
    "QA-LoRA": (lora(use_qalora=True), "use_qalora"),
    "a classifier": (lora(task_type="SEQ_CLS"), "task_type"),
    "an encoder": (lora(task_type="FEATURE_EXTRACTION"), "task_type"),
    "a translator": (lora(task_type="SEQ_2_SEQ_LM"), "task_type"),
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

ONLY_CONFIG: dict[str, Callable[[], PeftConfig]] = {
    # peft trains these with data or libraries that are not here.
    "arrow_config": lora(arrow_config=peft.ArrowConfig()),
    "corda_config": lora(corda_config=CordaConfig()),
    "megatron_config": lora(megatron_config={"tensor_model_parallel_size": 2}),
}
OTHER_TYPES = sorted(set(PEFT_TYPE_TO_CONFIG_MAPPING) - {PeftType.LORA})
NEEDED: dict[PeftType, dict[str, Any]] = {PeftType.ADALORA: {"total_step": 10}}
"""What peft wants to be told."""


@pytest.fixture(scope="module")
def save(base_model: Path) -> Callable[[PeftConfig, Path], Path]:
    """Let peft make an adapter of a kind and save it as it saves such."""

    def _save(config: PeftConfig, folder: Path) -> Path:
        base: PreTrainedModel = load_reference(base_model)
        with warnings.catch_warnings(action="ignore"):  # peft's advice on unusual configs
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


@pytest.mark.parametrize("field", ONLY_CONFIG)
def test_a_config_that_peft_writes_is_refused_by_its_field(
    field: str, peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    copy_adapter(peft_adapter, tmp_path)
    with warnings.catch_warnings(action="ignore"):
        ONLY_CONFIG[field]().save_pretrained(tmp_path)
    error = refusal(tmp_path, arch)
    assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert field in error.message


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_every_kind_of_tuning_that_peft_knows_is_lora_or_refused_by_name(
    kind: PeftType, peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    if kind is PeftType.ADAMSS and importlib.util.find_spec("sklearn") is None:
        pytest.skip("peft makes no config of AdaMSS without scikit-learn")
    copy_adapter(peft_adapter, tmp_path)
    config_of = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    with warnings.catch_warnings(action="ignore"):
        config_of(task_type="CAUSAL_LM", **NEEDED.get(kind, {})).save_pretrained(tmp_path)
    error = refusal(tmp_path, arch)
    assert error.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert f"peft_type = {kind.value!r}" in error.message


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_beginning_that_leaves_the_base_model_as_it_was_is_taken(
    start: bool | str, base_model: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(load_reference(base_model), lora(init_lora_weights=start)())
        model.save_pretrained(tmp_path, save_embedding_layers=False)
    (tmp_path / "README.md").unlink()
    before = load_reference(base_model).state_dict()
    after = model.get_base_model().state_dict()
    kept = [name for name in after if name.endswith(".base_layer.weight")]
    assert len(kept) == len(TARGETS) * arch.num_layers
    for name in kept:
        assert torch.equal(after[name], before[name.replace(".base_layer", "")])
    assert validate_adapter(tmp_path, arch, max_rank=64).rank == 4


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
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(load_reference(base_model), lora()())
        model.save_pretrained(tmp_path, safe_serialization=False)
    listed = [SourceFile(path.name, path.stat().st_size, None) for path in tmp_path.iterdir()]
    with pytest.raises(ReasonedError) as caught:
        adapter_files(listed)
    assert caught.value.reason is Reason.UNSAFE_FORMAT
    assert "adapter_model.bin" in caught.value.message
