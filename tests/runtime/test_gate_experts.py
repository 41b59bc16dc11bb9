"""The gate for mixtures of experts; what follows a router's close call is left out and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import load_arch
from tests.support.family_case import ATTENTION, LAYER, WINDOW, Case, CaseMaker, Mutation, mutations
from tests.support.gate import GateError
from tests.support.gate_runs import edit_config, edit_weights, gate, ones, zero
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_model

SHARED = ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj")
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
SPARSE = f"{LAYER}.mlp"


def swap_experts(block: str, gate: str) -> Mutation:
    def change(tensors: dict[str, Tensor]) -> None:
        one, two = f"{block}.experts.0.{gate}.weight", f"{block}.experts.1.{gate}.weight"
        tensors[one], tensors[two] = tensors[two], tensors[one]

    return edit_weights(change)


CASES: dict[str, Case] = {
    "mixtral": Case(
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        {
            "num_experts_per_tok": edit_config(num_experts_per_tok=1),
            "one expert more": edit_config(num_experts_per_tok=3),
            "router ignored": zero(f"{LAYER}.block_sparse_moe.gate.weight"),
            "an expert skipped": zero(f"{LAYER}.block_sparse_moe.experts.4.w2.weight"),
            "experts swapped": swap_experts(f"{LAYER}.block_sparse_moe", "w3"),
            "window ignored": edit_config(sliding_window=None),
        },
        all_linear=ATTENTION,
        ends=("o_proj", "v_proj", "lm_head"),
    ),
    "qwen2_moe": Case(
        "qwen2_moe",
        EXPERTS | {"shared_expert_intermediate_size": 56},
        {
            "norm_topk_prob": edit_config(norm_topk_prob=True),
            "num_experts_per_tok": edit_config(num_experts_per_tok=2),
            "router ignored": zero(f"{SPARSE}.gate.weight"),
            "experts swapped": swap_experts(SPARSE, "up_proj"),
            "shared expert skipped": zero(f"{SPARSE}.shared_expert.down_proj.weight"),
            "shared expert's gate ignored": zero(f"{SPARSE}.shared_expert_gate.weight"),
            "q bias dropped": zero(f"{LAYER}.self_attn.q_proj.bias"),
        },
        all_linear=(*ATTENTION, *SHARED),
        ends=("o_proj", "shared_expert.down_proj", "lm_head"),
    ),
    "qwen2_moe, no biases": Case(
        "qwen2_moe",
        EXPERTS
        | {"shared_expert_intermediate_size": 56, "norm_topk_prob": True, "qkv_bias": False},
        {"norm_topk_prob": edit_config(norm_topk_prob=False)},
        all_linear=(*ATTENTION, *SHARED),
        ends=("o_proj", "shared_expert.down_proj", "lm_head"),
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        EXPERTS | {"head_dim": 24, "attention_bias": True, "norm_topk_prob": True},
        {
            "norm_topk_prob": edit_config(norm_topk_prob=False),
            "num_experts_per_tok": edit_config(num_experts_per_tok=2),
            "router ignored": zero(f"{SPARSE}.gate.weight"),
            "an expert skipped": zero(f"{SPARSE}.experts.2.down_proj.weight"),
            "q norm skipped": ones(f"{LAYER}.self_attn.q_norm.weight"),
            "k norm skipped": ones(f"{LAYER}.self_attn.k_norm.weight"),
            "v bias dropped": zero(f"{LAYER}.self_attn.v_proj.bias"),
        },
        all_linear=ATTENTION,
        ends=("o_proj", "v_proj", "lm_head"),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CaseMaker:
    return CaseMaker(CASES, tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_mixed_batches_agrees_with_transformers_and_peft(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).agrees(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_every_row_agrees_when_a_small_pool_forces_preemption(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).agrees_when_preempted(tmp_path)


@pytest.mark.parametrize(("name", "mutation"), mutations(CASES))
def test_the_gate_notices_a_mutation(
    name: str, mutation: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).differs_when_spoilt(mutation, tmp_path)


def test_rows_behind_a_close_call_of_a_router_prove_nothing(tmp_path: Path) -> None:
    model_dir = make_model("mixtral", tmp_path, seed=3, num_local_experts=4)

    def make_two_alike(tensors: dict[str, Tensor]) -> None:
        router = tensors[f"{LAYER}.block_sparse_moe.gate.weight"]
        router[1:] = router[0]

    edit_weights(make_two_alike)(model_dir)
    adapter = make_adapter(model_dir, tmp_path / "r4", target_modules=("q_proj",))
    with pytest.raises(GateError, match="close calls"):
        gate(model_dir, {"r4": adapter}, (model_dir, {"r4": adapter}), tmp_path, count=2)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("mlp.experts.0.up_proj", "experts"),
        ("mlp.gate", "mlp.gate"),
        ("mlp.shared_expert_gate", "shared_expert_gate"),
    ],
)
def test_an_adapter_of_experts_or_routers_is_refused_by_name(
    module: str, place: str, made: CaseMaker, tmp_path: Path
) -> None:
    one = made("qwen2_moe")
    folder = tmp_path / "adapter"
    shutil.copytree(one.adapters["r4"], folder)
    (folder / "README.md").unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.{LAYER}.{module}"
    tensors |= {f"{stem}.lora_A.weight": torch.ones(4, 64)}
    tensors |= {f"{stem}.lora_B.weight": torch.ones(40, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ReasonedError, match=place) as caught:
        validate_adapter(folder, load_arch(one.model_dir), max_rank=64)
    assert caught.value.reason is Reason.UNSUPPORTED_TARGET


def test_an_adapter_of_fused_experts_is_refused_by_name(made: CaseMaker, tmp_path: Path) -> None:
    one = made("mixtral")
    folder = tmp_path / "adapter"
    shutil.copytree(one.adapters["r4"], folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    assert fields["target_parameters"] == [], "what peft writes beside adapters of attention only"
    validate_adapter(folder, load_arch(one.model_dir), max_rank=64)
    path.write_text(json.dumps(fields | {"target_parameters": ["mlp.experts.gate_up_proj"]}))
    with pytest.raises(ReasonedError, match="target_parameters") as caught:
        validate_adapter(folder, load_arch(one.model_dir), max_rank=64)
    assert caught.value.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
