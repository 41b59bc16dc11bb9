"""Turn a peft folder into a slot file in the plainest way: an oracle for the converter."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graft_runtime.layers.lora.layout import (
    PAGE_RANK,
    SlotHeader,
    all_groups,
    layout_hash,
    pages_for,
    tensor_names,
)
from graft_runtime.models.arch import DecoderArch


def write_slot_file(
    adapter_dir: Path, arch: DecoderArch, path: Path, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a slot file from what peft saved."""
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    ranks = [tensor.shape[0] for name, tensor in weights.items() if ".lora_A." in name]
    pages = pages_for(max(ranks))
    tensors: dict[str, Tensor] = {}
    for layer, group in all_groups(arch):
        a = torch.zeros(group.a_shape(pages))
        b = torch.zeros(group.b_shape(pages))
        touched = False
        for index, (start, part) in enumerate(zip(group.slice_starts, group.slices, strict=True)):
            stem = f"base_model.model.{arch.module_path(layer, part.module)}"
            if f"{stem}.lora_A.weight" not in weights:
                continue
            touched = True
            down, up = weights[f"{stem}.lora_A.weight"], weights[f"{stem}.lora_B.weight"]
            rank = down.shape[0]
            alpha = config["alpha_pattern"].get(part.module, config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            for row in range(rank):
                page, at = divmod(row, PAGE_RANK)
                a[page, index, at] = down[row]
                b[page, at, start : start + part.out_features] = up[:, row] * scale
        if touched:
            a_name, b_name = tensor_names(layer, group.name)
            tensors[a_name], tensors[b_name] = a.to(dtype), b.to(dtype)
    header = SlotHeader(
        digest="sha256:" + "0" * 64,
        rank=max(ranks),
        pages=pages,
        dtype=str(dtype).removeprefix("torch."),
        arch=layout_hash(arch),
    )
    save_file(tensors, path, metadata=header.to_metadata())
    return path
