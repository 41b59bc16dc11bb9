"""Adapters by the thousand, and what each makes transformers say.

The oracle is transformers' own model, run once for many adapters: each row of its batch has one of
them added by a hook. Only adapters whose every token is clearly the likeliest are kept, so that no
rounding decides what an answer must be.

Shape legend: B rows with an adapter each, L positions, I/O features in/out, R rank, V vocabulary,
N new tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.tiny_models import load_reference

TARGETS = ("v_proj", "down_proj")
RANKS = (1, 4, 8, 16, 20)
EFFECT = 1.0
"""Size of a change to a layer's output, relative to that output."""
MIN_GAP = 5e-3
"""Least distance of a golden token's logit from the next one's; float32 errs by about 1e-5."""
BEGINNING = 12
"""Tokens by which any two differ."""
BATCH = 128


@dataclass(frozen=True)
class GoldenAdapter:
    """One adapter on disk, and the tokens it must answer with."""

    number: int
    folder: Path
    tokens: tuple[int, ...]


def make_golden_adapters(
    model_dir: Path,
    folder: Path,
    prompt: Sequence[int],
    *,
    count: int,
    length: int,
    beside: Sequence[GoldenAdapter] = (),
) -> list[GoldenAdapter]:
    """Write adapters, no two of which begin their answers to the prompt alike.

    Args:
        model_dir: The base model.
        folder: Where each gets a folder.
        prompt: What they are asked.
        count: How many are wanted.
        length: How many tokens each answers.
        beside: Others that they must not be mistaken for, drawn before.
    """
    model = load_reference(model_dir)
    made: dict[tuple[int, ...], GoldenAdapter] = {}
    taken = {one.tokens[:BEGINNING] for one in beside}
    start = 1 + max((one.number for one in beside), default=-1)
    while len(made) < count:
        numbers = range(start, start + BATCH)
        drawn = [dict(_draw(model, number)) for number in numbers]
        start += BATCH
        tokens_BN, gaps_B = _answers(model, drawn, prompt, length)
        for number, weights, row, gap in zip(numbers, drawn, tokens_BN, gaps_B, strict=True):
            tokens = tuple(row.tolist())
            beginning = tokens[:BEGINNING]
            if gap >= MIN_GAP and beginning not in taken and len(made) < count:
                place = folder / f"adapter-{number:05d}"
                _save(place, weights)
                taken.add(beginning)
                made[beginning] = GoldenAdapter(number, place, tokens)
    return list(made.values())


Pair = tuple[Tensor, Tensor]


def _targets(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            yield name, module


def _draw(model: PreTrainedModel, number: int) -> Iterator[tuple[str, Pair]]:
    generator = torch.Generator().manual_seed(number)
    rank = RANKS[number % len(RANKS)]
    for name, module in _targets(model):
        a_RI = torch.randn(rank, module.in_features, generator=generator)
        b_OR = torch.randn(module.out_features, rank, generator=generator)
        yield name, (a_RI * module.in_features**-0.5, b_OR * EFFECT * rank**-0.5)


def _save(folder: Path, weights: dict[str, Pair]) -> None:
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{name}.lora_{factor}.weight": weight.contiguous()
        for name, pair in weights.items()
        for factor, weight in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = next(iter(weights.values()))[0].shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(TARGETS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@torch.inference_mode()
def _answers(
    model: PreTrainedModel, drawn: Sequence[dict[str, Pair]], prompt: Sequence[int], length: int
) -> tuple[Tensor, Tensor]:
    """Return the greedy tokens ``[B, N]`` and each row's smallest gap ``[B]``."""
    hooks = [
        module.register_forward_hook(partial(_add, _stack([one[name] for one in drawn])))
        for name, module in _targets(model)
    ]
    try:
        ids_BL = torch.tensor([list(prompt)] * len(drawn))
        cache, tokens, gaps = None, [], []
        for _ in range(length):
            output = model(input_ids=ids_BL, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[:, -1].float().topk(2)
            tokens.append(best.indices[:, 0])
            gaps.append(best.values[:, 0] - best.values[:, 1])
            ids_BL = tokens[-1][:, None]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(tokens, 1), torch.stack(gaps, 1).amin(1)


def _stack(pairs: Sequence[Pair]) -> Pair:
    """Pad all to the highest rank, which changes nothing."""
    most = max(RANKS)
    a = [nn.functional.pad(a_RI, (0, 0, 0, most - a_RI.shape[0])) for a_RI, _ in pairs]
    b = [nn.functional.pad(b_OR, (0, most - b_OR.shape[1])) for _, b_OR in pairs]
    return torch.stack(a), torch.stack(b)


def _add(pair: Pair, module: nn.Module, inputs: tuple[Tensor], output_BLO: Tensor) -> Tensor:
    del module
    a_BRI, b_BOR = pair
    return output_BLO + inputs[0] @ a_BRI.mT @ b_BOR.mT
