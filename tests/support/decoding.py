"""Our decoder and its oracle side by side: load both, run both, compare rows of logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.models.arch import DecoderArch, load_arch
from graft_runtime.models.decoder import Decoder
from graft_runtime.models.weights import load_decoder
from tests.support.slot_files import write_slot_file

CPU = torch.device("cpu")
KV = KvLayout(num_blocks=96, block_size=8)


@dataclass
class Loaded:
    """A decoder with its adapters resident."""

    decoder: Decoder
    slots: SlotPool
    slot_of: dict[str, int]


def load_all(
    model_dir: Path,
    adapters: Mapping[str, Path],
    scratch: Path,
    *,
    arch: DecoderArch | None = None,
    dtype: torch.dtype = torch.float32,
    num_pages: int = 12,
    kv: KvLayout = KV,
) -> Loaded:
    """Load a model and its adapters as the engine would, without an engine."""
    arch = arch or load_arch(model_dir)
    slots = SlotPool(arch, num_pages=num_pages, dtype=dtype, device=CPU)
    decoder = load_decoder(
        model_dir,
        arch,
        dtype=dtype,
        device=CPU,
        kv=kv,
        lora=slots.lora,
        on_progress=lambda done, total: None,
    )
    slot_of = {}
    for name, folder in adapters.items():
        path = write_slot_file(folder, arch, scratch / f"{name}.slot", dtype)
        load = slots.begin_load(SlotSource.of(path))
        while not load.advance(10_000):
            pass
        slot_of[name] = load.slot
    return Loaded(decoder, slots, slot_of)


def reference_logits(model: Any, tokens: list[int], adapter: str | None = None) -> Tensor:
    """Return the oracle's logits for every token of one sequence run alone.

    Args:
        model: A transformers model, or a peft model when adapters are asked for.
        tokens: The sequence.
        adapter: Name under which peft knows the adapter; None is the base model.
    """
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        if adapter is not None:
            model.set_adapter(adapter)
            logits = model(ids).logits
        elif hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                logits = model(ids).logits
        else:
            logits = model(ids).logits
    return torch.as_tensor(logits[0]).float()


def worst_delta(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference in units of the logits' standard deviation (at least 1)."""
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.std())))
