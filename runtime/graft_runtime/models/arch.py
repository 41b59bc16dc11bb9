"""One description of a decoder, read from a Hugging Face config in a closed world.

Holds no tensor and imports no torch: the loader process validates adapters against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.base import Dtype
from graft_runtime.models.families import FAMILIES, Activation, Family
from graft_runtime.models.hf_config import ConfigReader, read_json_object
from graft_runtime.models.moe_config import MoeSpec, read_moe
from graft_runtime.models.rope_config import read_ropes
from graft_runtime.models.serving_dtype import read_dtype
from graft_runtime.models.special_tokens import read_eos_token_ids
from graft_runtime.models.windows import read_windows

_INFORMATIONAL = frozenset(
    {
        # Training and initialisation.
        "attention_dropout",
        "initializer_range",
        "pretraining_tp",
        # What the Python class returns or remembers.
        "_attn_implementation_autoset",
        "_name_or_path",
        "bos_token_id",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "tokenizer_class",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Fields that do not change the logits."""

_ATTENTION_MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"})


@dataclass(frozen=True)
class DecoderArch:
    """Everything that decides what a decoder computes, apart from its weights."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    max_positions: int
    """Longest context in tokens the model was made for."""
    dtype: Dtype
    """The checkpoint's own dtype."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation, from both config files."""
    attention_scale: float
    """Factor on the products of queries and keys."""
    windows: tuple[int | None, ...]
    """How many tokens a token sees in each layer, itself included; None is all before it."""
    qk_norm: bool = False
    """Query and key heads are normalised before they are rotated."""
    fused_projections: bool = False
    """The checkpoint has q, k, v in one tensor, and gate and up in another."""
    activation: Activation = "silu"
    post_norms: bool = False
    """Each block's output is normalised too, before it is added."""
    unit_offset_norms: bool = False
    """Norms multiply with one plus their weight."""
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    """Bounds the scaled products of queries and keys, by a tanh; None is no bound."""
    logit_softcap: float | None = None
    local_rope: RopeSpec | None = None
    """The rotary embedding of layers with a window; None: as in the others."""
    moe: MoeSpec | None = None
    """Experts instead of one MLP in each layer."""

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads."""
        return self.num_kv_heads * self.head_dim

    @cached_property
    def lora_groups(self) -> tuple[LoraGroup, ...]:
        """The adaptable groups of every layer, in the order they are computed.

        Of a mixture of experts, that is what every token passes through.
        """
        qkv: tuple[LoraSlice, ...]
        hidden, ffn, mlp = self.hidden_size, self.intermediate_size, ""
        if self.moe is not None:
            ffn, mlp = self.moe.shared_size, "shared_expert."
        if self.fused_projections:
            qkv = (LoraSlice("qkv_proj", self.q_size + 2 * self.kv_size),)
            gate_up: tuple[LoraSlice, ...] = (LoraSlice("gate_up_proj", 2 * ffn),)
        else:
            qkv = (
                LoraSlice("q_proj", self.q_size),
                LoraSlice("k_proj", self.kv_size),
                LoraSlice("v_proj", self.kv_size),
            )
            gate_up = (LoraSlice(f"{mlp}gate_proj", ffn), LoraSlice(f"{mlp}up_proj", ffn))
        attention = (
            LoraGroup("qkv", hidden, qkv),
            LoraGroup("o", self.q_size, (LoraSlice("o_proj", hidden),)),
        )
        if not ffn:
            return attention
        return (
            *attention,
            LoraGroup("gate_up", hidden, gate_up),
            LoraGroup("down", ffn, (LoraSlice(f"{mlp}down_proj", hidden),)),
        )

    @cached_property
    def lm_head_group(self) -> LoraGroup:
        """The output projection as an adaptable group."""
        return LoraGroup("lm_head", self.hidden_size, (LoraSlice("lm_head", self.vocab_size),))

    def module_path(self, layer: int | None, module: str) -> str:
        """Return a module's name in the checkpoint, as ``model.layers.3.self_attn.q_proj``."""
        if layer is None:
            return module
        parent = "self_attn" if module in _ATTENTION_MODULES else "mlp"
        return f"model.layers.{layer}.{parent}.{module}"


def load_arch(model_dir: Path) -> DecoderArch:
    """Read ``config.json`` and ``generation_config.json`` of a checkpoint.

    Raises:
        ReasonedError: UnsupportedModel names a field whose meaning is not implemented,
            InvalidConfig one whose value cannot be right, MalformedArtifact a file that cannot be
            read. Not retried: the files have to change.
    """
    config = ConfigReader(read_json_object(model_dir / "config.json"))
    architecture, family = _family(config)
    num_heads = config.positive_int("num_attention_heads")
    hidden_size = config.positive_int("hidden_size")
    num_layers = config.positive_int("num_hidden_layers")
    vocab_size = config.positive_int("vocab_size")
    max_positions = config.positive_int("max_position_embeddings", family.max_positions)
    attention_bias = _flag_if(family.has_attention_bias_field, config, "attention_bias")
    head_dim = _head_dim(config, family, hidden_size, num_heads)
    rope, local_rope = read_ropes(config, family, max_positions, head_dim)
    attention_softcap, logit_softcap = _softcaps(config, family)
    bos = config.token_ids("bos_token_id")
    arch = DecoderArch(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_kv_heads(config, family, num_heads),
        head_dim=head_dim,
        norm_eps=config.positive_float("rms_norm_eps", family.norm_eps),
        rope=rope,
        qkv_bias=_qkv_bias(config, family) or attention_bias,
        o_bias=attention_bias,
        mlp_bias=_flag_if(family.has_mlp_bias_field, config, "mlp_bias"),
        tie_embeddings=config.flag("tie_word_embeddings", default=family.tie_embeddings),
        max_positions=_stretched(rope, max_positions),
        dtype=read_dtype(config),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=read_eos_token_ids(config, model_dir, vocab_size),
        attention_scale=_attention_scale(config, family, head_dim),
        windows=read_windows(config, family, num_layers),
        qk_norm=family.qk_norm,
        fused_projections=family.fused,
        activation=_activation(config, family),
        post_norms=family.is_gemma,
        unit_offset_norms=family.is_gemma,
        embedding_scale=math.sqrt(hidden_size) if family.is_gemma else 1.0,
        attention_softcap=attention_softcap,
        logit_softcap=logit_softcap,
        local_rope=local_rope,
        moe=read_moe(config, family.moe) if family.moe is not None else None,
    )
    config.require(family.required)
    config.finish(_INFORMATIONAL | family.informational)
    _check_heads(config, arch)
    return arch


def _family(config: ConfigReader) -> tuple[str, Family]:
    names = config.take("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise config.unsupported("architectures", names)
    config.one_of("model_type", (family.model_type,))
    return cast("str", name), family


def _flag_if(has_field: bool, config: ConfigReader, name: str) -> bool:
    """Return a flag where the family's code reads it; elsewhere it stays unknown and is refused."""
    return has_field and config.flag(name, default=False)


def _qkv_bias(config: ConfigReader, family: Family) -> bool:
    if not family.has_qkv_bias_field:
        return family.qkv_bias
    return config.flag("qkv_bias", default=family.qkv_bias)


def _kv_heads(config: ConfigReader, family: Family, num_heads: int) -> int:
    is_null = config.is_explicit_null("num_key_value_heads")
    default = num_heads if is_null or family.kv_heads is None else family.kv_heads
    return config.positive_int("num_key_value_heads", default)


def _head_dim(config: ConfigReader, family: Family, hidden_size: int, num_heads: int) -> int:
    if family.head_dim is not None or config.has("head_dim"):
        return config.positive_int("head_dim", family.head_dim)
    if hidden_size % num_heads:
        raise config.invalid("num_attention_heads", num_heads, "must divide hidden_size")
    return hidden_size // num_heads


def _attention_scale(config: ConfigReader, family: Family, head_dim: int) -> float:
    if not family.is_gemma:
        return math.pow(head_dim, -0.5)
    return math.pow(config.positive_float("query_pre_attn_scalar", 256.0), -0.5)


def _activation(config: ConfigReader, family: Family) -> Activation:
    names = family.activations
    return names[config.one_of(family.activation_field, names, next(iter(names)))]


def _softcaps(config: ConfigReader, family: Family) -> tuple[float | None, float | None]:
    """Return the bounds of attention and of logits where the family's code knows them."""
    attention = logits = None
    if family.has_attention_softcap:
        attention = config.optional_float("attn_logit_softcapping", family.attention_softcap)
    if family.is_gemma:
        logits = config.optional_float("final_logit_softcapping", family.logit_softcap)
    return attention, logits


def _stretched(rope: RopeSpec, max_positions: int) -> int:
    """Return the longest context: some kinds leave the length before stretching in the config."""
    if rope.kind not in ("yarn", "dynamic"):
        return max_positions
    return max(max_positions, round(rope.factor * rope.original_max_positions))


def _check_heads(config: ConfigReader, arch: DecoderArch) -> None:
    if arch.num_heads % arch.num_kv_heads:
        raise config.invalid(
            "num_key_value_heads", arch.num_kv_heads, f"must divide {arch.num_heads} heads"
        )
    if arch.head_dim % 2:
        raise config.invalid("head_dim", arch.head_dim, "must be even for rotary embeddings")
