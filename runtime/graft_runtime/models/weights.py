"""Streams a checkpoint into a decoder: fused, in the serving dtype, packed, one layer at a time.

Called once when the engine starts. Never unpickles anything.

Shape legend: H hidden size, V vocabulary, I/O features in/out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.attention.base import (
    AttentionFactory,
    AttentionTraits,
    KvLayout,
    PagedKv,
)
from graft_runtime.layers.attention.choose import choose_attention
from graft_runtime.layers.linear import Linear
from graft_runtime.layers.lora.base import LoraPool
from graft_runtime.layers.lora.layout import LoraGroup
from graft_runtime.layers.norm import RmsNorm
from graft_runtime.layers.rope import Rope
from graft_runtime.models.arch import DecoderArch
from graft_runtime.models.checkpoint import Checkpoint
from graft_runtime.models.decoder import Decoder, DecoderLayer
from graft_runtime.models.mlp import AdaptedLinear, DenseMlp, Expert, ExpertMlp, Mlp, SharedExpert
from graft_runtime.models.moe_config import MoeSpec

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all."""

_EMBEDDING = "model.embed_tokens.weight"
_LM_HEAD = "lm_head.weight"


def load_decoder(
    model_dir: Path,
    arch: DecoderArch,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kv: KvLayout,
    lora: LoraPool | None,
    on_progress: Progress,
    attention: AttentionFactory = choose_attention,
) -> Decoder:
    """Build a decoder from the files in ``model_dir``; arguments as of `load_model`.

    Takes the weights' memory and one staging buffer more.

    Raises:
        ReasonedError: A tensor is missing, left over, of a wrong shape or an unreadable dtype. Not
            retried: the files have to change.
    """
    with Checkpoint(model_dir) as checkpoint:
        loader = _Loader(checkpoint, arch, dtype, device, lora)
        embedding_VH = loader.tensor(_EMBEDDING, (arch.vocab_size, arch.hidden_size))
        layers = []
        for index in range(arch.num_layers):
            layers.append(loader.layer(index))
            on_progress(checkpoint.bytes_read(), checkpoint.num_bytes)
        norm = loader.norm("model.norm.weight", arch.hidden_size)
        lm_head = loader.lm_head(embedding_VH)
        _refuse_leftovers(checkpoint, arch)
        on_progress(checkpoint.num_bytes, checkpoint.num_bytes)
    paged = PagedKv.of(arch, kv, dtype, device)
    return Decoder(
        arch=arch,
        embedding_VH=embedding_VH,
        layers=tuple(layers),
        norm=norm,
        lm_head=lm_head,
        rope=Rope(arch.rope, arch.head_dim, dtype=dtype, device=device),
        local_rope=(
            Rope(arch.local_rope, arch.head_dim, dtype=dtype, device=device)
            if arch.local_rope is not None
            else None
        ),
        attention=attention(
            paged, AttentionTraits(arch.attention_scale, arch.windows, arch.attention_softcap)
        ),
        lora=lora,
        kv=paged,
    )


class _Loader:
    """Reads the pieces of one decoder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arch: DecoderArch,
        dtype: torch.dtype,
        device: torch.device,
        lora: LoraPool | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._arch = arch
        self._dtype = dtype
        self._device = device
        self._lora = lora

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor: contiguous, of ``shape``, in the serving dtype and on the device."""
        return self._fuse([(name, shape)])

    def norm(self, name: str, width: int) -> RmsNorm:
        """Read a normalisation."""
        eps = self._arch.norm_eps
        if not self._arch.unit_offset_norms:
            return RmsNorm(self.tensor(name, (width,)), eps)
        # One plus a small number needs more digits than a small dtype has.
        return RmsNorm(self._fuse([(name, (width,))], torch.float32).add_(1.0), eps)

    def layer(self, index: int) -> DecoderLayer:
        """Read one layer."""
        arch = self._arch
        qkv, o = arch.lora_groups[:2]
        names = _norm_names(arch)
        prefix = f"model.layers.{index}"

        def norm(role: str, width: int) -> RmsNorm | None:
            return self.norm(f"{prefix}.{names[role]}.weight", width) if role in names else None

        return DecoderLayer(
            attention_norm=self.norm(f"{prefix}.{names['attention']}.weight", arch.hidden_size),
            qkv=self._linear(index, qkv, has_bias=arch.qkv_bias),
            o=self._linear(index, o, has_bias=arch.o_bias),
            mlp_norm=self.norm(f"{prefix}.{names['mlp']}.weight", arch.hidden_size),
            mlp=self._dense_mlp(index) if arch.moe is None else self._expert_mlp(index, arch.moe),
            q_norm=norm("q", arch.head_dim),
            k_norm=norm("k", arch.head_dim),
            attention_out_norm=norm("attention out", arch.hidden_size),
            mlp_out_norm=norm("mlp out", arch.hidden_size),
        )

    def lm_head(self, embedding_VH: Tensor) -> AdaptedLinear:
        """Read the output projection, or share the embedding ``[V, H]`` where they are tied."""
        shape = (self._arch.vocab_size, self._arch.hidden_size)
        weight_VH = embedding_VH if self._arch.tie_embeddings else self.tensor(_LM_HEAD, shape)
        return self._adapted(None, self._arch.lm_head_group, Linear(weight_VH))

    def _dense_mlp(self, layer: int) -> DenseMlp:
        arch = self._arch
        gate_up, down = arch.lora_groups[2:]
        return DenseMlp(
            self._linear(layer, gate_up, has_bias=arch.mlp_bias),
            self._linear(layer, down, has_bias=arch.mlp_bias),
            arch.activation,
        )

    def _expert_mlp(self, layer: int, moe: MoeSpec) -> Mlp:
        hidden = self._arch.hidden_size
        path = f"model.layers.{layer}.{moe.block}"
        shared = None
        if moe.shared_size:
            gate = Linear(self.tensor(f"{path}.shared_expert_gate.weight", (1, hidden)))
            shared = SharedExpert(self._dense_mlp(layer), gate)
        return ExpertMlp(
            router=Linear(self.tensor(f"{path}.gate.weight", (moe.num_experts, hidden))),
            experts=tuple(
                self._expert(f"{path}.experts.{number}", moe) for number in range(moe.num_experts)
            ),
            experts_per_token=moe.num_experts_per_token,
            normalises=moe.normalises,
            activation=self._arch.activation,
            shared=shared,
        )

    def _expert(self, path: str, moe: MoeSpec) -> Expert:
        gate, up, down = (f"{path}.{name}.weight" for name in moe.expert_names)
        inner = (moe.expert_size, self._arch.hidden_size)
        return Expert(
            Linear(self._fuse([(gate, inner), (up, inner)])),
            Linear(self.tensor(down, (inner[1], inner[0]))),
        )

    def _linear(self, layer: int, group: LoraGroup, *, has_bias: bool) -> AdaptedLinear:
        paths = [
            (self._arch.module_path(layer, part.module), part.out_features) for part in group.slices
        ]
        weight_OI = self._fuse(
            [(f"{path}.weight", (width, group.in_features)) for path, width in paths]
        )
        biases = [(f"{path}.bias", (width,)) for path, width in paths if has_bias]
        linear = Linear(weight_OI, self._fuse(biases) if has_bias else None)
        return self._adapted(layer, group, linear)

    def _fuse(
        self, parts: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Read tensors below one another, straight to their place on the device."""
        rows = sum(shape[0] for _, shape in parts)
        shape = (rows, *parts[0][1][1:])
        fused = torch.empty(shape, dtype=dtype or self._dtype, device=self._device)
        start = 0
        for name, (height, *_) in parts:
            self._checkpoint.read(name, fused[start : start + height])
            start += height
        return fused

    def _adapted(self, layer: int | None, group: LoraGroup, linear: Linear) -> AdaptedLinear:
        slab = self._lora.slabs[(layer, group.name)] if self._lora is not None else None
        return AdaptedLinear(linear, slab)


def _norm_names(arch: DecoderArch) -> dict[str, str]:
    """Return what the checkpoint calls a layer's norms, by what each of them is for."""
    names = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
    if arch.post_norms:
        names |= {
            "attention out": "post_attention_layernorm",
            "mlp": "pre_feedforward_layernorm",
            "mlp out": "post_feedforward_layernorm",
        }
    if arch.qk_norm:
        names |= {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
    return names


def _refuse_leftovers(checkpoint: Checkpoint, arch: DecoderArch) -> None:
    """Refuse tensors nobody read: they would have changed the model we were asked to serve."""
    known = {_LM_HEAD} if arch.tie_embeddings else set()
    left = [
        name
        for name in checkpoint.unread()
        # Old checkpoints carry what is computed from the config.
        if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    if left:
        message = f"the checkpoint holds {left[0]!r}, which this architecture does not use"
        raise ReasonedError(Reason.UNUSED_TENSORS, message)
