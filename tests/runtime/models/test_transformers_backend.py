"""Models that transformers computes: described as they are, or refused by what is amiss."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.models.base import ModelArch
from graft_runtime.models.foreign_arch import ForeignArch, ForeignLinear
from graft_runtime.models.load import Model, load_model
from graft_runtime.models.read import read_model, read_model_apart
from tests.support.decoding import CPU, KV
from tests.support.packing import Packer
from tests.support.tiny_models import load_reference, make_llama, make_model


def load(
    folder: Path,
    arch: ModelArch | None = None,
    dtype: torch.dtype = torch.float32,
    kv: KvLayout = KV,
    progress: list[tuple[int, int]] | None = None,
) -> Model:
    arch = arch or read_model(folder)
    steps = progress if progress is not None else []
    return load_model(
        folder,
        arch,
        dtype=dtype,
        device=CPU,
        kv=kv,
        lora=SlotPool(arch, num_pages=2, dtype=dtype, device=CPU).lora,
        on_progress=lambda done, total: steps.append((done, total)),
    )


def refused(folder: Path, arch: ModelArch | None = None) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        load(folder, arch)
    return caught.value


def foreign(folder: Path) -> ForeignArch:
    arch = read_model(folder)
    assert isinstance(arch, ForeignArch)
    return arch


def logits(model: Model, tokens: list[int]) -> Tensor:
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    with torch.inference_mode():
        return model.forward(packer.batch([(packer.sequence(tokens), len(tokens))]))


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_model_is_described_as_its_own_code_asks_for_attention(tmp_path: Path) -> None:
    folder = make_model(
        "cohere2",
        tmp_path,
        seed=1,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        dtype="bfloat16",
    )
    arch = foreign(folder)
    assert (arch.architecture, arch.num_layers, arch.vocab_size) == ("Cohere2ForCausalLM", 3, 160)
    assert (arch.num_kv_heads, arch.head_dim, arch.attention_scale) == (2, 16, 0.25)
    assert arch.windows == (12, None, 12)
    assert (arch.dtype, arch.eos_token_ids, arch.max_positions) == ("bfloat16", (2,), 512)
    assert arch.head == ForeignLinear("lm_head", 64, 160)
    assert arch.module_path(1, "mlp.down_proj") == "model.layers.1.mlp.down_proj"
    assert arch.module_path(None, "lm_head") == "lm_head"
    assert ForeignLinear("mlp.down_proj", 112, 64) in arch.linears
    assert len(arch.linears) == 7
    assert msgspec.json.decode(msgspec.json.encode(arch), type=ForeignArch) == arch


@pytest.mark.parametrize(
    ("model_type", "config", "word"),
    [
        ("mamba", {}, "MambaForCausalLM cannot be served: it keeps a recurrent state"),
        ("rwkv", {}, "RwkvForCausalLM cannot be served: it keeps a recurrent state"),
        ("falcon", {}, "AttentionInterface"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}, "s_aux"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "conv"),
        ("olmo2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
    ],
)
def test_what_a_paged_cache_cannot_hold_is_refused_by_name(
    tmp_path: Path, model_type: str, config: dict[str, Any], word: str
) -> None:
    folder = make_model(model_type, tmp_path, seed=1, **config)
    error = refused(folder)
    assert error.reason is Reason.UNSUPPORTED_MODEL
    assert word in error.message


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"architectures": ["Olmo2Model"]}, "architectures"),
        ({"architectures": ["Olmo2ForCausalLM"] * 2}, "architectures"),
        ({"model_type": "nobody_knows"}, "nobody_knows"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 5}, "Olmo2ForCausalLM"),
        ({"eos_token_id": 160}, "eos_token_id"),
    ],
)
def test_a_config_that_means_something_else_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], word: str
) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    edit(folder, **fields)
    error = refused(folder)
    assert error.reason in (Reason.UNSUPPORTED_MODEL, Reason.INVALID_CONFIG)
    assert word in error.message
    assert len(error.message) < 400


def test_code_that_a_checkpoint_brings_along_is_not_run(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    trap = tmp_path / "ran"
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    own = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapForCausalLM"}
    edit(folder, auto_map=own)
    load(folder)
    edit(folder, architectures=["TrapForCausalLM"], model_type="trap")
    assert refused(folder).reason is Reason.UNSUPPORTED_MODEL
    assert not trap.exists()


def test_tensors_must_be_those_of_the_model(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    path = folder / "model.safetensors"
    good = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in good.items() if key != name}, path, {"format": "pt"})
    missing = refused(folder)
    assert (missing.reason, name in missing.message) == (Reason.MALFORMED_ARTIFACT, True)
    save_file(good | {"model.layers.0.extra": torch.ones(4)}, path, {"format": "pt"})
    spare = refused(folder)
    assert (spare.reason, "extra" in spare.message) == (Reason.UNUSED_TENSORS, True)
    path.rename(folder / "pytorch_model.bin")
    assert refused(folder).reason is Reason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_scale": 0.3},
        {"windows": (None, None, None)},
        {"windows": (12, None, 13)},
        {"attention_softcap": 1.0},
    ],
    ids=str,
)
def test_a_model_that_comes_out_otherwise_than_its_own_code_says_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(
        "cohere2",
        tmp_path,
        seed=1,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    error = refused(folder, msgspec.structs.replace(foreign(folder), **changes))
    assert error.reason is Reason.UNSUPPORTED_MODEL
    assert "differs from its own forward pass" in error.message


def test_a_state_that_nobody_declares_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    mix = Olmo2MLP.forward

    def look_back(self: Olmo2MLP, x: Tensor) -> Any:
        return mix(self, x + 0.3 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])

    monkeypatch.setattr(Olmo2MLP, "forward", look_back)
    assert "differs from its own forward pass" in refused(folder).message


def test_a_cache_too_small_for_the_whole_comparison_still_serves(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    load(folder, kv=KvLayout(num_blocks=3, block_size=4))


def test_progress_reaches_the_size_of_the_files(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    steps: list[tuple[int, int]] = []
    load(folder, progress=steps)
    size = (folder / "model.safetensors").stat().st_size
    assert steps == [(0, size), (size, size)]


def test_the_model_outlives_its_files(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=1)
    model = load(folder)
    before = logits(model, [1, 2, 3])
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(logits(model, [1, 2, 3]), before)


def test_half_precision_is_as_near_to_the_truth_as_transformers(tmp_path: Path) -> None:
    folder = make_model("olmo2", tmp_path, seed=3, dtype="bfloat16")
    tokens = list(range(40, 100))
    exact = load_reference(folder, torch.float64)(torch.tensor([tokens])).logits[0].detach()
    theirs = load_reference(folder, torch.bfloat16)(torch.tensor([tokens])).logits[0].detach()
    ours = logits(load(folder, dtype=torch.bfloat16), tokens)

    def error(of: Tensor) -> float:
        return float((of.double() - exact).pow(2).mean().sqrt())

    assert 0 < error(ours) <= 1.5 * error(theirs)


def test_a_family_of_our_own_needs_no_transformers(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    code = (
        "import sys; from pathlib import Path; import graft_runtime.engine.build;"
        "from graft_runtime.models.read import read_model;"
        f"read_model(Path({str(folder)!r})); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_process_of_its_own_comes_to_the_same_description(tmp_path: Path) -> None:
    folder = make_model("gpt_neox", tmp_path, seed=1)
    assert read_model_apart(folder) == read_model(folder)
    stateful = make_model("mamba", tmp_path, seed=1)
    with pytest.raises(ReasonedError, match="recurrent") as caught:
        read_model_apart(stateful)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
