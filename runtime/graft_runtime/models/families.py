"""What sets the families of decoders apart: what their code always does and what it assumes.

A table of values. `models/arch.py` reads a config with it; the decoder sees only the flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graft_runtime.models.moe_config import QWEN_REQUIRED, MoeFamily

Activation = Literal["silu", "gelu_tanh"]
WindowRule = Literal["none", "off", "all", "from_layer", "pattern"]
"""Which layers see a window only: none, none though the config may speak of windows, all, from a
layer on if switched on, all but every nth."""


@dataclass(frozen=True)
class Family:
    """Defaults are those of the family's config class in transformers, where a field is absent."""

    model_type: str
    max_positions: int
    kv_heads: int | None = None
    """None: as many as query heads."""
    head_dim: int | None = None
    """None: hidden size over heads."""
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False
    activation_field: str = "hidden_act"
    activations: Mapping[str, Activation] = field(default_factory=lambda: {"silu": "silu"})
    """Supported names; the first one is the default."""
    has_attention_bias_field: bool = False
    """Whether ``attention_bias`` puts biases on q, k, v and o."""
    has_mlp_bias_field: bool = False
    qkv_bias: bool = False
    """Biases on q, k and v, whatever the config says."""
    has_qkv_bias_field: bool = False
    """Whether ``qkv_bias`` can say otherwise."""
    qk_norm: bool = False
    """Each query and key head is normalised before it is rotated."""
    fused: bool = False
    """The checkpoint, and so its adapters, know ``qkv_proj`` and ``gate_up_proj``."""
    window_rule: WindowRule = "none"
    window: int | None = None
    """Tokens a token of a windowed layer sees, itself included; None: no window unless set."""
    window_pattern: int = 0
    """With rule ``pattern``: every how many layers one sees everything."""
    has_pattern_field: bool = False
    is_gemma: bool = False
    """Norms of ``1 + weight`` around each block, scaled embeddings, an own attention scale."""
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    has_attention_softcap: bool = False
    local_rope_theta: float | None = None
    """Not None: windowed layers have rotary frequencies of their own."""
    original_max_positions: int | None = None
    """Not None: the config says outside the rope section for how many positions it was trained."""
    has_partial_rotary: bool = False
    """Whether ``partial_rotary_factor`` leaves a part of each head as it is."""
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    """Older names of the family for kinds of rotary embedding."""
    moe: MoeFamily | None = None
    """Not None: experts instead of one MLP in each layer."""
    required: Mapping[str, object] = field(default_factory=dict)
    """Fields that may be present with this value only."""
    informational: frozenset[str] = frozenset()
    """Fields of this family that do not change the logits."""


_GEMMA: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh"}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", 2048, has_attention_bias_field=True, has_mlp_bias_field=True
    ),
    # Mistral's class has no biases at all, so such fields are unknown there and refused.
    "MistralForCausalLM": Family("mistral", 131_072, kv_heads=8, window_rule="all", window=4096),
    "Qwen2ForCausalLM": Family(
        "qwen2", 32_768, kv_heads=32, qkv_bias=True, window_rule="from_layer", window=4096
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        32_768,
        kv_heads=32,
        head_dim=128,
        has_attention_bias_field=True,
        qk_norm=True,
        window_rule="from_layer",
        window=4096,
    ),
    "MixtralForCausalLM": Family(
        "mixtral",
        131_072,
        kv_heads=8,
        norm_eps=1e-5,
        rope_theta=1_000_000.0,
        window_rule="all",
        moe=MoeFamily(
            num_experts=8,
            num_experts_per_token=2,
            count_fields=("num_local_experts", "num_experts"),
            size_field="intermediate_size",
            expert_size=None,
            always_normalises=True,
            block="block_sparse_moe",
            expert_names=("w1", "w3", "w2"),
        ),
    ),
    "Qwen2MoeForCausalLM": Family(
        "qwen2_moe",
        32_768,
        kv_heads=16,
        qkv_bias=True,
        has_qkv_bias_field=True,
        window_rule="off",
        moe=MoeFamily(
            num_experts=60,
            num_experts_per_token=4,
            count_fields=("num_experts", "num_local_experts"),
            size_field="moe_intermediate_size",
            expert_size=1408,
            shared_size=5632,
            required=QWEN_REQUIRED,
        ),
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3_moe",
        32_768,
        kv_heads=4,
        has_attention_bias_field=True,
        qk_norm=True,
        window_rule="off",
        moe=MoeFamily(
            num_experts=128,
            num_experts_per_token=8,
            count_fields=("num_experts", "num_local_experts"),
            size_field="moe_intermediate_size",
            expert_size=768,
            required=QWEN_REQUIRED,
        ),
    ),
    "Phi3ForCausalLM": Family(
        "phi3",
        4096,
        norm_eps=1e-5,
        fused=True,
        window_rule="all",
        original_max_positions=4096,
        has_partial_rotary=True,
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        required={
            "attention_bias": False,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
        },
        # The code a checkpoint brings along is never run.
        informational=frozenset({"auto_map", "embd_pdrop", "resid_pdrop"}),
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        8192,
        kv_heads=4,
        head_dim=256,
        tie_embeddings=True,
        activation_field="hidden_activation",
        activations=_GEMMA,
        has_attention_bias_field=True,
        window_rule="pattern",
        window=4096,
        window_pattern=2,
        is_gemma=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
        has_attention_softcap=True,
        required={"hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": False},
        informational=frozenset({"cache_implementation"}),
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        131_072,
        kv_heads=4,
        head_dim=256,
        rope_theta=1_000_000.0,
        tie_embeddings=True,
        activation_field="hidden_activation",
        activations=_GEMMA,
        has_attention_bias_field=True,
        qk_norm=True,
        window_rule="pattern",
        window=4096,
        window_pattern=6,
        has_pattern_field=True,
        is_gemma=True,
        local_rope_theta=10_000.0,
        required={"hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": False},
        # The underscored pattern is a note of the class to itself, next to layer_types.
        informational=frozenset({"_sliding_window_pattern", "cache_implementation"}),
    ),
}
"""By the one name in a config's ``architectures``."""
