"""What the gate's tests share: traffic of all kinds, and ways to spoil a model for the engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.support.gate import (
    GateRun,
    GateSettings,
    Verdict,
    compare,
    compare_with,
    start_engine,
)


def staggered(
    run: GateRun, adapters: dict[str, Path], count: int, *, repeats: bool = False
) -> None:
    """Send requests of all lengths to all models while earlier ones are under way."""
    chance = random.Random(5)
    models = [None, *adapters]
    prompts: list[list[int]] = []
    for number in range(count):
        prompt = [chance.randrange(3, 160) for _ in range(chance.choice([1, 2, 7, 8, 9, 30, 50]))]
        if repeats and number >= len(models) and chance.random() < 0.5:
            prompt = [*prompts[number - len(models)], *prompt[:9]]
        prompts.append(prompt)
        run.submit(prompt, chance.randrange(3, 25), models[number % len(models)])
        for _ in range(chance.randrange(3)):
            run.step()
    run.finish()


def gate(
    engine_model: Path,
    engine_adapters: dict[str, Path],
    reference: tuple[Path, dict[str, Path]] | PeftModel,
    work_dir: Path,
    settings: GateSettings | None = None,
    count: int = 40,
    *,
    repeats: bool = False,
) -> tuple[GateRun, Verdict]:
    """Run the traffic and compare every row; the reference may be open already."""
    run = start_engine(engine_model, engine_adapters, work_dir, settings or GateSettings())
    staggered(run, engine_adapters, count, repeats=repeats)
    if isinstance(reference, tuple):
        return run, compare(run, *reference)
    return run, compare_with(run, reference)


def edit_config(**fields: object) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return mutate


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return mutate


def zero(name: str) -> Callable[[Path], None]:
    return edit_weights(lambda tensors: tensors[name].zero_())


def ones(name: str) -> Callable[[Path], None]:
    return edit_weights(lambda tensors: tensors[name].fill_(1.0))


def swap(first: str, second: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return edit_weights(change)
