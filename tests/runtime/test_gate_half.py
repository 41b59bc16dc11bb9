"""The gate's bound for half precision on a CPU: requests that decode together, in bfloat16.

Shape legend: N tokens of one sequence, S rows of logits, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.models.load import load_model
from graft_runtime.models.read import read_model
from tests.support.family_case import WINDOW
from tests.support.packing import Packer
from tests.support.tiny_models import load_reference, make_model

CPU = torch.device("cpu")
PROMPT, DECODED = 30, 12
SEQUENCES = [list(range(start, start + PROMPT + DECODED)) for start in (3, 20, 41, 60, 75)]

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": WINDOW, "head_dim": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_the_truth_as_transformers(
    family: str, tmp_path: Path
) -> None:
    folder = make_model(family, tmp_path, seed=3, dtype="bfloat16", **FAMILIES[family])

    def reference(dtype: torch.dtype) -> Tensor:
        model: Any = load_reference(folder, dtype)
        logits_SNV: Tensor = model(torch.tensor(SEQUENCES)).logits.detach()
        return logits_SNV[:, PROMPT:].double()

    exact_SNV = reference(torch.float64)
    ours_SNV = decoded_logits(folder).double()

    def error(of_SNV: Tensor) -> float:
        return float((of_SNV - exact_SNV).pow(2).mean().sqrt())

    assert 0 < error(ours_SNV) <= 1.5 * error(reference(torch.bfloat16))


def decoded_logits(folder: Path) -> Tensor:
    """Compute the prompts, then one token of each sequence at a time."""
    kv = KvLayout(num_blocks=24, block_size=16)
    model = load_model(
        folder,
        read_model(folder),
        dtype=torch.bfloat16,
        device=CPU,
        kv=kv,
        lora=None,
        on_progress=lambda _done, _total: None,
    )
    packer = Packer(num_blocks=kv.num_blocks, block_size=kv.block_size, scatter=None, device=CPU)
    sequences = [packer.sequence(tokens) for tokens in SEQUENCES]
    with torch.inference_mode():
        model.forward(packer.batch([(one, PROMPT) for one in sequences]))
        steps = [
            model.forward(packer.batch([(one, 1) for one in sequences])) for _ in range(DECODED)
        ]
    return torch.stack(steps, dim=1)
