"""Loads a checkpoint's weights into whatever computes it. Called once when the engine starts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from graft_runtime.layers.attention.base import (
    AttentionFactory,
    AttentionTraits,
    KvLayout,
    PagedKv,
)
from graft_runtime.layers.attention.choose import choose_attention
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora.base import LoraPool
from graft_runtime.models.arch import DecoderArch
from graft_runtime.models.base import ModelArch
from graft_runtime.models.foreign_arch import ForeignArch
from graft_runtime.models.weights import Progress, load_decoder


class Model(Protocol):
    """A model over packed batches."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Return float32 logits ``[S, V]``; call under ``torch.inference_mode``."""

    @property
    def kv(self) -> PagedKv:
        """The cache that it reads and writes."""


def load_model(
    model_dir: Path,
    arch: ModelArch,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kv: KvLayout,
    lora: LoraPool | None,
    on_progress: Progress,
    attention: AttentionFactory = choose_attention,
) -> Model:
    """Build what `models/read.py` described.

    Args:
        model_dir: The checkpoint: config and safetensors files. Not needed any more afterwards.
        arch: From `read_model` of the same folder.
        dtype: Of weights, hidden states and cache, whatever the files have.
        device: Where all of it lies.
        kv: Size of the cache that the model gets.
        lora: Where adapters' weights lie; None serves none.
        on_progress: Told bytes read and bytes in all, now and then and at the end.
        attention: Makes the attention backend.

    Raises:
        ReasonedError: The files do not hold what the config promises, or a model of transformers
            does not come out as its own code computes it. Not retried: the files have to change.
    """
    if isinstance(arch, DecoderArch):
        return load_decoder(
            model_dir,
            arch,
            dtype=dtype,
            device=device,
            kv=kv,
            lora=lora,
            on_progress=on_progress,
            attention=attention,
        )
    if isinstance(arch, ForeignArch):
        return _load_foreign(model_dir, arch, dtype, device, kv, lora, on_progress, attention)
    raise TypeError(f"{type(arch).__name__} is no description of a model")


def _load_foreign(
    model_dir: Path,
    arch: ForeignArch,
    dtype: torch.dtype,
    device: torch.device,
    kv: KvLayout,
    lora: LoraPool | None,
    on_progress: Progress,
    attention: AttentionFactory,
) -> Model:
    from graft_runtime.models.transformers_backend import (
        TransformersModel,
        load_foreign_model,
        own_logits,
        refuse_unlike,
    )

    num_bytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    on_progress(0, num_bytes)
    foreign = load_foreign_model(model_dir, arch, dtype, device)
    on_progress(num_bytes, num_bytes)
    own = own_logits(foreign, arch, kv, device)
    paged = PagedKv.of(arch, kv, dtype, device)
    traits = AttentionTraits(arch.attention_scale, arch.windows, arch.attention_softcap)
    model = TransformersModel(
        foreign, arch, attention=attention(paged, traits), lora=lora, kv=paged
    )
    refuse_unlike(model, arch, own, dtype, kv, device)
    return model
