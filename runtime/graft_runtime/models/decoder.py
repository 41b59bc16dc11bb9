"""A decoder over packed batches: base weights, paged attention, adapters; one for all families.

Knows no request, no file and no sampling. `models/weights.py` builds it, the runner calls it.

Shape legend: T tokens, S rows of logits, H hidden size, V vocabulary, N query and key heads
together, Q/K query and key/value heads, D head size, O features out, E rows whose hidden states are
pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import AttentionBackend, PagedKv, StepAttention
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora.base import LoraBatch, LoraPool, LoraRows
from graft_runtime.layers.lora.choose import prepare_lora
from graft_runtime.layers.norm import RmsNorm
from graft_runtime.layers.rope import Rope, Rotation, rotate
from graft_runtime.models.arch import DecoderArch
from graft_runtime.models.mlp import AdaptedLinear, Mlp


@dataclass(frozen=True)
class StepContext:
    """What all layers share in one step."""

    rotation: Rotation
    local_rotation: Rotation
    """For layers with a window; mostly the same."""
    attention: StepAttention
    lora: LoraRows | None


@dataclass(frozen=True)
class DecoderLayer:
    """One layer's weights."""

    attention_norm: RmsNorm
    qkv: AdaptedLinear
    o: AdaptedLinear
    mlp_norm: RmsNorm
    mlp: Mlp
    q_norm: RmsNorm | None = None
    k_norm: RmsNorm | None = None
    """Normalise each head before it is rotated; both or none."""
    attention_out_norm: RmsNorm | None = None
    mlp_out_norm: RmsNorm | None = None
    """Normalise what a block adds."""

    def forward(self, x_TH: Tensor, layer: int, arch: DecoderArch, step: StepContext) -> Tensor:
        """Attend, then mix features; both on top of what came in.

        Args:
            x_TH: Hidden states, in the serving dtype; not changed.
            layer: Which layer this is, from zero.
            arch: Of the whole model.
            step: What all layers share.

        Returns:
            ``[T, H]``, the same dtype.
        """
        added_TH = self._attend(self.attention_norm(x_TH), layer, arch, step)
        if self.attention_out_norm is not None:
            added_TH = self.attention_out_norm(added_TH)
        x_TH = x_TH + added_TH
        added_TH = self.mlp(self.mlp_norm(x_TH), step.lora)
        if self.mlp_out_norm is not None:
            added_TH = self.mlp_out_norm(added_TH)
        return x_TH + added_TH

    def _attend(self, x_TH: Tensor, layer: int, arch: DecoderArch, step: StepContext) -> Tensor:
        qkv_TO = self.qkv(x_TH, step.lora)
        heads_TND = qkv_TO.view(qkv_TO.shape[0], -1, arch.head_dim)
        is_local = arch.windows[layer] is not None
        rotation = step.local_rotation if is_local else step.rotation
        q_TQD, k_TKD = self._rotated(heads_TND, arch, rotation)
        v_TKD = heads_TND[:, arch.num_heads + arch.num_kv_heads :]
        return self.o(step.attention.attend(layer, q_TQD, k_TKD, v_TKD).flatten(1), step.lora)

    def _rotated(
        self, heads_TND: Tensor, arch: DecoderArch, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        queries, keys = arch.num_heads, arch.num_kv_heads
        if self.q_norm is not None and self.k_norm is not None:
            q_TQD = self.q_norm(heads_TND[:, :queries])
            k_TKD = self.k_norm(heads_TND[:, queries : queries + keys])
            return rotate(q_TQD, rotation), rotate(k_TKD, rotation)
        qk_TND = rotate(heads_TND[:, : queries + keys], rotation)
        return qk_TND[:, :queries], qk_TND[:, queries:]


@dataclass(frozen=True)
class Decoder:
    """The whole model."""

    arch: DecoderArch
    embedding_VH: Tensor
    layers: tuple[DecoderLayer, ...]
    norm: RmsNorm
    lm_head: AdaptedLinear
    rope: Rope
    local_rope: Rope | None
    attention: AttentionBackend
    lora: LoraPool | None
    kv: PagedKv

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Compute one step: write its keys and values, return float32 logits ``[S, V]``.

        Call under ``torch.inference_mode``.
        """
        return self._logits(*self._run(batch), batch)

    def forward_pooled(
        self, batch: ForwardBatch, bounds: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Do the same, and return the sums ``[E, H]`` of hidden states between bounds in T.

        They are what the head would read, in float32.
        """
        x_TH, lora = self._run(batch)
        sums = [self.norm(x_TH[start:stop]).float().sum(dim=0) for start, stop in bounds]
        return self._logits(x_TH, lora, batch), torch.stack(sums)

    def _run(self, batch: ForwardBatch) -> tuple[Tensor, LoraBatch | None]:
        lora = prepare_lora(self.lora, batch) if self.lora is not None else None
        rotation = self.rope.step_rotation(batch)
        local = self.local_rope
        step = StepContext(
            rotation=rotation,
            local_rotation=local.rotation(batch.positions_T) if local is not None else rotation,
            attention=self.attention.prepare(batch),
            lora=lora.tokens if lora else None,
        )
        x_TH = self._embed(batch.token_ids_T)
        for index, layer in enumerate(self.layers):
            x_TH = layer.forward(x_TH, index, self.arch, step)
        return x_TH, lora

    def _logits(self, x_TH: Tensor, lora: LoraBatch | None, batch: ForwardBatch) -> Tensor:
        x_SH = self.norm(x_TH.index_select(0, batch.logits_rows_S))
        logits_SV = self.lm_head(x_SH, lora.logits if lora else None).float()
        cap = self.arch.logit_softcap
        return logits_SV if cap is None else (logits_SV / cap).tanh_().mul_(cap)

    def _embed(self, token_ids_T: Tensor) -> Tensor:
        x_TH = functional.embedding(token_ids_T, self.embedding_VH)
        if self.arch.embedding_scale == 1.0:
            return x_TH
        # The scale is rounded to the model's dtype too: that is how these models were trained.
        return x_TH * torch.tensor(self.arch.embedding_scale, dtype=x_TH.dtype, device=x_TH.device)
