"""The gate's bound for half precision on a CPU: requests that decode together, in bfloat16, as the
base model and each with an adapter.

Shape legend: N tokens of one sequence, S rows of logits, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.layers.lora import cpu, native
from graft_runtime.models.load import Model, load_model
from graft_runtime.models.read import read_model
from tests.support.decoding import load_all, reference_logits
from tests.support.family_case import WINDOW
from tests.support.packing import Packer
from tests.support.peft_adapters import load_with_adapters, make_adapter
from tests.support.tiny_models import load_reference, make_model

CPU = torch.device("cpu")
PROMPT, DECODED = 30, 12
KV = KvLayout(num_blocks=24, block_size=16)
RANKS = {"eight": 8, "sixteen": 16, "more": 32}
ADAPTERS = ("eight", None, "more", "sixteen", "eight")
"""Of each sequence."""
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

    theirs = _error(reference(torch.bfloat16), exact_SNV)
    assert 0 < _error(ours_SNV, exact_SNV) <= 1.5 * theirs


@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_adapted_rows_in_half_precision_are_as_near_to_the_truth_as_peft(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "torch":
        monkeypatch.setattr(cpu, "kernel", lambda: None)
    elif native.kernel() is None:
        pytest.skip("no C compiler was there")
    folder = make_model("llama", tmp_path / "model", seed=3, dtype="bfloat16")
    adapters = {
        name: make_adapter(folder, tmp_path / name, rank=rank, seed=rank, dtype=torch.bfloat16)
        for name, rank in RANKS.items()
    }

    def reference(dtype: torch.dtype) -> Tensor:
        model = load_with_adapters(folder, adapters, dtype)
        rows = [
            reference_logits(model, tokens, name)
            for tokens, name in zip(SEQUENCES, ADAPTERS, strict=True)
        ]
        return torch.stack(rows)[:, PROMPT:].double()

    exact_SNV, theirs_SNV = reference(torch.float64), reference(torch.bfloat16)
    loaded = load_all(folder, adapters, tmp_path, dtype=torch.bfloat16, kv=KV)
    slots = [0 if name is None else loaded.slot_of[name] for name in ADAPTERS]
    ours_SNV = decoded(loaded.decoder, slots).double()
    for ours_NV, theirs_NV, exact_NV in zip(ours_SNV, theirs_SNV, exact_SNV, strict=True):
        assert 0 < _error(ours_NV, exact_NV) <= 1.5 * _error(theirs_NV, exact_NV)


def decoded_logits(folder: Path) -> Tensor:
    """Load the base model alone and decode with it."""
    model = load_model(
        folder,
        read_model(folder),
        dtype=torch.bfloat16,
        device=CPU,
        kv=KV,
        lora=None,
        on_progress=lambda _done, _total: None,
    )
    return decoded(model, [0] * len(SEQUENCES))


def decoded(model: Model, slots: list[int]) -> Tensor:
    """Compute the prompts, then one token of each sequence at a time."""
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None, device=CPU)
    sequences = [packer.sequence(*each) for each in zip(SEQUENCES, slots, strict=True)]
    with torch.inference_mode():
        model.forward(packer.batch([(one, PROMPT) for one in sequences]))
        steps = [
            model.forward(packer.batch([(one, 1) for one in sequences])) for _ in range(DECODED)
        ]
    return torch.stack(steps, dim=1)


def _error(of_NV: Tensor, exact_NV: Tensor) -> float:
    return float((of_NV - exact_NV).pow(2).mean().sqrt())
