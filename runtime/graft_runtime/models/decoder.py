"""A decoder of the Llama family over packed batches: base weights, paged attention, adapters.

Knows no request, no file and no sampling. `models/weights.py` builds it, the runner calls it.

Shape legend: T tokens, S rows of logits, H hidden size, V vocabulary, N query and key heads
together, Q/K query and key/value heads, D head size, F features inside
the MLP, I/O features in/out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import AttentionBackend, StepAttention
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.linear import Linear
from graft_runtime.layers.lora.base import LoraPool, LoraSlab
from graft_runtime.layers.lora.cpu import LoraRows, prepare_lora
from graft_runtime.layers.norm import RmsNorm
from graft_runtime.layers.rope import Rope, Rotation, rotate
from graft_runtime.models.arch import DecoderArch


@dataclass(frozen=True)
class AdaptedLinear:
    """A base layer and the adapters' memory beside it."""

    base: Linear
    slab: LoraSlab | None

    def __call__(self, x_TI: Tensor, lora: LoraRows | None) -> Tensor:
        """Multiply each row with the base weights and add its adapter."""
        out_TO = self.base(x_TI)
        if lora is not None and self.slab is not None:
            lora.add(self.slab, x_TI, out_TO)
        return out_TO


@dataclass(frozen=True)
class StepContext:
    """What all layers share in one step."""

    rotation: Rotation
    attention: StepAttention
    lora: LoraRows | None


@dataclass(frozen=True)
class DecoderLayer:
    """One layer's weights."""

    attention_norm: RmsNorm
    qkv: AdaptedLinear
    o: AdaptedLinear
    mlp_norm: RmsNorm
    gate_up: AdaptedLinear
    down: AdaptedLinear

    def forward(self, x_TH: Tensor, layer: int, arch: DecoderArch, step: StepContext) -> Tensor:
        """Attend, then mix features; both on top of what came in."""
        x_TH = x_TH + self._attend(self.attention_norm(x_TH), layer, arch, step)
        return x_TH + self._mix(self.mlp_norm(x_TH), step.lora)

    def _attend(self, x_TH: Tensor, layer: int, arch: DecoderArch, step: StepContext) -> Tensor:
        qkv_TO = self.qkv(x_TH, step.lora)
        heads_TND = qkv_TO.view(qkv_TO.shape[0], -1, arch.head_dim)
        rotated = arch.num_heads + arch.num_kv_heads
        qk_TND = rotate(heads_TND[:, :rotated], step.rotation)
        q_TQD, k_TKD = qk_TND[:, : arch.num_heads], qk_TND[:, arch.num_heads :]
        out_TQD = step.attention.attend(layer, q_TQD, k_TKD, heads_TND[:, rotated:])
        return self.o(out_TQD.flatten(1), step.lora)

    def _mix(self, x_TH: Tensor, lora: LoraRows | None) -> Tensor:
        gate_TF, up_TF = self.gate_up(x_TH, lora).chunk(2, dim=-1)
        return self.down(functional.silu(gate_TF).mul_(up_TF), lora)


@dataclass(frozen=True)
class Decoder:
    """The whole model."""

    arch: DecoderArch
    embedding_VH: Tensor
    layers: tuple[DecoderLayer, ...]
    norm: RmsNorm
    lm_head: AdaptedLinear
    rope: Rope
    attention: AttentionBackend
    lora: LoraPool | None

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Compute one step: write its keys and values, return float32 logits ``[S, V]``.

        Call under ``torch.inference_mode``.
        """
        lora = prepare_lora(self.lora, batch) if self.lora is not None else None
        step = StepContext(
            rotation=self.rope.rotation(batch.positions_T),
            attention=self.attention.prepare(batch),
            lora=lora.tokens if lora else None,
        )
        x_TH = functional.embedding(batch.token_ids_T, self.embedding_VH)
        for index, layer in enumerate(self.layers):
            x_TH = layer.forward(x_TH, index, self.arch, step)
        x_SH = self.norm(x_TH.index_select(0, batch.logits_rows_S))
        return self.lm_head(x_SH, lora.logits if lora else None).float()
