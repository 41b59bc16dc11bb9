"""Sorts a step's rows by adapter for the backend of the device they are on.

Shape legend: T tokens, S rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora import cpu
from graft_runtime.layers.lora.base import LoraBatch, LoraPool, LoraRows

GroupRows = Callable[[LoraPool, Sequence[int], torch.device], LoraRows | None]


def prepare_lora(pool: LoraPool, batch: ForwardBatch) -> LoraBatch | None:
    """Sort a step's rows by adapter; None when no row has one."""
    if not any(batch.adapter_slots):
        return None
    slots_T: list[int] = []
    bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
    for (start, end), slot in zip(bounds, batch.adapter_slots, strict=True):
        slots_T += [slot] * (end - start)
    slots_S = [slots_T[row] for row in batch.logits_rows_S.tolist()]
    device = batch.token_ids_T.device
    group = backend(device)
    return LoraBatch(group(pool, slots_T, device), group(pool, slots_S, device))


def backend(device: torch.device) -> GroupRows:
    """Return what sorts rows for a device: Triton's kernels on CUDA, else plain torch."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from graft_runtime.layers.lora import triton

        return triton.group_rows
    return cpu.group_rows
