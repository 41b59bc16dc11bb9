"""What a family's code does without a config field has teeth too: each flag read wrongly fails."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from graft_runtime.models.arch import load_arch
from tests.support.decoding import KV, load_all, reference_logits, worst_delta
from tests.support.packing import Packer, all_logits, run_in_pieces
from tests.support.tiny_models import load_reference, make_model

TOLERANCE = 1e-4

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 20},
    "mistral": {"sliding_window": 12},
}

MUTATIONS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {}),
    ("gemma2", {"embedding_scale": 1.0}),
    ("gemma2", {"activation": "silu"}),
    ("gemma2", {"unit_offset_norms": False}),
    ("gemma2", {"attention_scale": 0.25}),
    ("gemma2", {"windows": (None, 12, None)}),
    ("gemma2", {"windows": (12, None, 13)}),
    ("gemma3_text", {}),
    ("gemma3_text", {"local_rope": None}),
    ("mistral", {}),
    ("mistral", {"windows": (12, None, 12)}),
    ("mistral", {"activation": "gelu_tanh"}),
]


@pytest.mark.parametrize(("family", "changes"), MUTATIONS, ids=str)
def test_a_misread_family_fails(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model_dir = make_model(family, tmp_path, seed=21, **CONFIGS[family])
    arch = dataclasses.replace(load_arch(model_dir), **changes)
    ours = load_all(model_dir, {}, tmp_path, arch=arch)
    rng = random.Random(0)
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=rng)
    sequence = packer.sequence([rng.randrange(160) for _ in range(80)])
    run_in_pieces(ours.decoder, packer, [sequence], rng)
    expected = reference_logits(load_reference(model_dir), sequence.tokens)
    worst = worst_delta(all_logits(sequence), expected)
    assert worst > 10 * TOLERANCE if changes else worst <= TOLERANCE
