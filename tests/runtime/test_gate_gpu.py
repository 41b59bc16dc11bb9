"""The gate on a CUDA device: float32 with TF32 off, and the bound for half precision.

`make test-gpu` runs it. In float32 the reference is transformers on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.layers.attention.gather import GatherAttention
from graft_runtime.layers.attention.varlen import PAGE_MULTIPLE, VarlenAttention
from graft_runtime.models.load import load_model
from graft_runtime.models.read import read_model
from tests.support.device_cases import DEVICE_CASES
from tests.support.family_case import WINDOW, CaseMaker
from tests.support.gate import GateSettings
from tests.support.packing import Packer
from tests.support.tiny_models import load_reference, make_model

# Shape legend: N tokens of one sequence, V vocabulary.

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")

HALF: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 64},
    "gemma2": {"sliding_window": WINDOW, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CaseMaker:
    return CaseMaker(DEVICE_CASES, tmp_path_factory)


@pytest.fixture(autouse=True)
def _whole_float32() -> None:
    assert torch.get_float32_matmul_precision() == "highest", "TF32 is on"


@pytest.mark.parametrize("name", DEVICE_CASES)
def test_every_row_agrees_on_the_device(name: str, made: CaseMaker, tmp_path: Path) -> None:
    made(name).agrees(tmp_path, GateSettings(device=CUDA))


@pytest.mark.parametrize("name", DEVICE_CASES)
def test_every_row_agrees_on_the_device_when_preempted(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    made(name).agrees_when_preempted(tmp_path, device=CUDA)


@pytest.mark.parametrize("block_size", [16, PAGE_MULTIPLE], ids=["gathered", "in place"])
@pytest.mark.parametrize("family", HALF)
def test_half_precision_is_as_near_to_the_truth_as_transformers(
    family: str, block_size: int, tmp_path: Path
) -> None:
    folder = make_model(family, tmp_path, seed=3, dtype="bfloat16", **HALF[family])
    tokens = list(range(40, 100))

    def reference(dtype: torch.dtype) -> Tensor:
        model: Any = load_reference(folder, dtype).to(CUDA)
        logits_NV: Tensor = model(torch.tensor([tokens], device=CUDA)).logits[0].detach()
        return logits_NV.double()

    exact_NV = reference(torch.float64)
    ours_NV = chunked_logits(folder, tokens, block_size).double()

    def error(of_NV: Tensor) -> float:
        return float((of_NV - exact_NV).pow(2).mean().sqrt())

    assert 0 < error(ours_NV) <= 1.5 * error(reference(torch.bfloat16))


def chunked_logits(folder: Path, tokens: list[int], block_size: int) -> Tensor:
    """Compute one sequence in chunks and single tokens over scattered blocks."""
    kv = KvLayout(num_blocks=12, block_size=block_size)
    model = load_model(
        folder,
        read_model(folder),
        dtype=torch.bfloat16,
        device=CUDA,
        kv=kv,
        lora=None,
        on_progress=lambda _done, _total: None,
    )
    packer = Packer(num_blocks=kv.num_blocks, block_size=kv.block_size, scatter=None, device=CUDA)
    sequence = packer.sequence(tokens)
    with torch.inference_mode():
        return torch.cat(
            [
                model.forward(packer.batch([(sequence, count)]))
                for count in (30, 1, 1, len(tokens) - 32)
            ]
        )


def test_the_fast_kernel_is_used_where_it_fits(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path, seed=1, dtype="bfloat16")
    chosen: dict[torch.dtype, object] = {}
    for dtype in (torch.bfloat16, torch.float32):
        model: Any = load_model(
            folder,
            read_model(folder),
            dtype=dtype,
            device=CUDA,
            kv=KvLayout(4, 16),
            lora=None,
            on_progress=lambda _done, _total: None,
        )
        chosen[dtype] = type(model.attention)
    assert chosen == {torch.bfloat16: VarlenAttention, torch.float32: GatherAttention}
