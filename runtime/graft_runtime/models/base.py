"""What every model tells about itself, whoever computes it. Holds no tensor; imports no torch."""

from __future__ import annotations

from typing import Literal, Protocol

from graft_runtime.layers.lora.layout import LoraGroup
from graft_runtime.layers.rope_spec import RopeSpec

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelArch(Protocol):
    """A causal language model, as scheduler, cache, adapters and loader need to know it."""

    @property
    def architecture(self) -> str:
        """Name of the model's class in its config."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""

    @property
    def num_kv_heads(self) -> int:
        """Key (and value) heads of each layer."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def max_positions(self) -> int:
        """Longest context in tokens the model was made for."""

    @property
    def dtype(self) -> Dtype:
        """The checkpoint's own dtype."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation."""

    @property
    def rope(self) -> RopeSpec:
        """Says which sequences get other frequencies than the rest."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens a token sees in each layer, itself included; None is all before it."""

    @property
    def lora_groups(self) -> tuple[LoraGroup, ...]:
        """The adaptable groups of every layer."""

    @property
    def lm_head_group(self) -> LoraGroup:
        """The output projection as an adaptable group."""

    def module_path(self, layer: int | None, module: str) -> str:
        """Return an adaptable module's name in the checkpoint; layer None is the projection."""
