"""Adapters written by peft itself, with weights that visibly change what a model says."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.support.tiny_models import load_reference

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EFFECT = 0.6
"""Size of an adapter's change to a layer's output, relative to that output."""


def make_adapter(
    model_dir: Path,
    out_dir: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    target_modules: Sequence[str] = ALL_LINEAR,
    rslora: bool = False,
    seed: int = 0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    **lora_config: Any,
) -> Path:
    """Save a LoRA adapter for the model in ``model_dir`` and return its folder.

    B is not zero, as peft would start it: each module's output moves by about `EFFECT`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(target_modules),
        use_rslora=rslora,
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        task_type="CAUSAL_LM",
        **lora_config,
    )
    with _tied_head_allowed():
        model = get_peft_model(load_reference(model_dir), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                _draw(module, generator)
    model.to(dtype)
    # "auto" would save the whole base lm_head beside an adapter of it.
    model.save_pretrained(out_dir, save_embedding_layers=False)
    return out_dir


def load_with_adapters(
    model_dir: Path, adapters: Mapping[str, Path], dtype: torch.dtype = torch.float32
) -> PeftModel:
    """Open a base model with named adapters: the oracle of every adapted row."""
    names = list(adapters)
    with _tied_head_allowed():
        base = load_reference(model_dir, dtype)
        model = PeftModel.from_pretrained(base, adapters[names[0]], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(adapters[name], adapter_name=name)
    return model.eval()


@contextmanager
def _tied_head_allowed() -> Iterator[None]:
    """Silence peft's advice on merging adapters of a tied output projection: we never merge."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


def _draw(module: LoraLayer, generator: torch.Generator) -> None:
    for name in module.lora_A:
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        rank = a.shape[0]
        a.normal_(0.0, a.shape[1] ** -0.5, generator=generator)
        b.normal_(0.0, EFFECT / (module.scaling[name] * rank**0.5), generator=generator)
