"""One description of a model that transformers computes: what was seen of it, as plain values.

Holds no tensor and imports no torch: it crosses a pipe from the process that looked
(`models/transformers_probe.py`) to the loader, which validates adapters against it.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice
from graft_runtime.layers.rope_spec import PLAIN_ROPE, RopeSpec
from graft_runtime.models.base import Dtype


class ForeignLinear(msgspec.Struct, frozen=True):
    """A linear layer that every token passes through once."""

    path: str
    """Inside its layer, or in the model for the output projection."""
    in_features: int
    out_features: int


class ForeignArch(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A causal language model out of transformers. All its layers have the same shape."""

    architecture: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    dtype: Dtype
    eos_token_ids: tuple[int, ...]
    attention_scale: float
    windows: tuple[int | None, ...]
    attention_softcap: float | None
    layers_path: str
    """Where the list of layers lies in the model, as ``model.layers``."""
    attention_path: str
    """The attention module inside its layer."""
    linears: tuple[ForeignLinear, ...]
    """The adaptable linear layers, the same in every layer."""
    head: ForeignLinear

    @property
    def rope(self) -> RopeSpec:
        """Positions are the model's own business and depend on no length."""
        return PLAIN_ROPE

    @cached_property
    def lora_groups(self) -> tuple[LoraGroup, ...]:
        """Each linear layer is a group of its own."""
        return tuple(
            LoraGroup(one.path, one.in_features, (LoraSlice(one.path, one.out_features),))
            for one in self.linears
        )

    @cached_property
    def lm_head_group(self) -> LoraGroup:
        """The output projection as an adaptable group."""
        part = LoraSlice(self.head.path, self.head.out_features)
        return LoraGroup("lm_head", self.head.in_features, (part,))

    def module_path(self, layer: int | None, module: str) -> str:
        """Return a module's name in the model, as ``gpt_neox.layers.3.attention.dense``."""
        return module if layer is None else f"{self.layers_path}.{layer}.{module}"
