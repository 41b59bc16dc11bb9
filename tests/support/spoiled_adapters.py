"""Copies of a good adapter with one thing changed: what tenants upload by mistake or on purpose."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def copy_adapter(source: Path, folder: Path) -> Path:
    """Copy the files that make an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(source / name, folder / name)
    return folder


def with_config(source: Path, folder: Path, **changes: Any) -> Path:
    """Copy an adapter and set fields of its config."""
    copy_adapter(source, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return folder


def with_weights(
    source: Path, folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
) -> Path:
    """Copy an adapter and pass its tensors through a function."""
    copy_adapter(source, folder)
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def first(tensors: Mapping[str, Tensor], factor: str) -> str:
    """Return the name of the first tensor that is a factor A or B."""
    return next(name for name in sorted(tensors) if f"lora_{factor}" in name)


def cast(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a change of dtype."""
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}
