"""One description of a decoder, read from a Hugging Face config in a closed world.

Holds no tensor and imports no torch: the loader process validates adapters against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, cast

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice
from graft_runtime.layers.rope_spec import RopeKind, RopeSpec
from graft_runtime.models.hf_config import ConfigReader, read_json_object

Dtype = Literal["float32", "bfloat16", "float16"]

_DTYPES = ("float32", "bfloat16", "float16")

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


class _Family(NamedTuple):
    """What a family's config class assumes when a field is absent."""

    model_type: str
    kv_heads: int | None
    """None: as many as query heads."""
    max_positions: int
    sliding_window: int | None


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", None, 2048, None),
    "MistralForCausalLM": _Family("mistral", 8, 131_072, 4096),
}


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
    attention_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    max_positions: int
    """Longest context in tokens the model was made for."""
    dtype: Dtype
    """The checkpoint's own dtype."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation, from both config files."""

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
        """The adaptable groups of every layer, in the order they are computed."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        q, k, v = (
            LoraSlice("q_proj", self.q_size),
            LoraSlice("k_proj", self.kv_size),
            LoraSlice("v_proj", self.kv_size),
        )
        return (
            LoraGroup("qkv", hidden, (q, k, v)),
            LoraGroup("o", self.q_size, (LoraSlice("o_proj", hidden),)),
            LoraGroup("gate_up", hidden, (LoraSlice("gate_proj", ffn), LoraSlice("up_proj", ffn))),
            LoraGroup("down", ffn, (LoraSlice("down_proj", hidden),)),
        )

    @cached_property
    def lm_head_group(self) -> LoraGroup:
        """The output projection as an adaptable group."""
        return LoraGroup("lm_head", self.hidden_size, (LoraSlice("lm_head", self.vocab_size),))


def module_path(layer: int | None, module: str) -> str:
    """Return a module's name in the checkpoint, as ``model.layers.3.self_attn.q_proj``."""
    if layer is None:
        return module
    parent = "self_attn" if module in {"q_proj", "k_proj", "v_proj", "o_proj"} else "mlp"
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
    max_positions = config.positive_int("max_position_embeddings", family.max_positions)
    vocab_size = config.positive_int("vocab_size")
    _refuse_window(config, family, max_positions)
    config.one_of("hidden_act", ("silu",), "silu")
    bos = config.token_ids("bos_token_id")
    arch = DecoderArch(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=config.positive_int("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.positive_int("num_key_value_heads", family.kv_heads or num_heads),
        head_dim=_head_dim(config, hidden_size, num_heads),
        norm_eps=config.positive_float("rms_norm_eps", 1e-6),
        rope=_rope(config, max_positions),
        # Mistral's class has no biases at all, so these fields are then unknown and refused.
        attention_bias=family.model_type == "llama"
        and config.flag("attention_bias", default=False),
        mlp_bias=family.model_type == "llama" and config.flag("mlp_bias", default=False),
        tie_embeddings=config.flag("tie_word_embeddings", default=False),
        max_positions=max_positions,
        dtype=_dtype(config),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=_eos_token_ids(config, model_dir, vocab_size),
    )
    config.finish(_INFORMATIONAL)
    _check_heads(config, arch)
    return arch


def _family(config: ConfigReader) -> tuple[str, _Family]:
    names = config.take("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise config.unsupported("architectures", names)
    config.one_of("model_type", (family.model_type,))
    return cast("str", name), family


def _head_dim(config: ConfigReader, hidden_size: int, num_heads: int) -> int:
    if not config.has("head_dim") and hidden_size % num_heads:
        raise config.invalid("num_attention_heads", num_heads, "must divide hidden_size")
    return config.positive_int("head_dim", hidden_size // num_heads)


def _check_heads(config: ConfigReader, arch: DecoderArch) -> None:
    if arch.num_heads % arch.num_kv_heads:
        raise config.invalid(
            "num_key_value_heads", arch.num_kv_heads, f"must divide {arch.num_heads} heads"
        )
    if arch.head_dim % 2:
        raise config.invalid("head_dim", arch.head_dim, "must be even for rotary embeddings")


def _refuse_window(config: ConfigReader, family: _Family, max_positions: int) -> None:
    if family.sliding_window is None:
        return
    if config.is_explicit_null("sliding_window"):
        return
    window = config.positive_int("sliding_window", family.sliding_window)
    if window < max_positions:
        raise config.unsupported("sliding_window", window)


def _dtype(config: ConfigReader) -> Dtype:
    legacy = config.take("torch_dtype")
    name = config.one_of("dtype", _DTYPES, legacy if isinstance(legacy, str) else "float32")
    return cast("Dtype", name)


def _rope(config: ConfigReader, max_positions: int) -> RopeSpec:
    """Read either form: ``rope_parameters``, or the older ``rope_theta`` with ``rope_scaling``."""
    theta = config.positive_float("rope_theta", 10_000.0)
    if config.has("rope_parameters") and config.has("rope_scaling"):
        raise config.unsupported("rope_scaling", config.take("rope_scaling"))
    rope = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    theta = rope.positive_float("rope_theta", theta)
    legacy_kind = rope.take("type", "default")
    kind = cast("RopeKind", rope.one_of("rope_type", ("default", "linear", "llama3"), legacy_kind))
    if rope.positive_float("partial_rotary_factor", 1.0) != 1.0:
        raise rope.unsupported("partial_rotary_factor", rope.take("partial_rotary_factor"))
    if kind == "linear":
        spec = RopeSpec(theta, kind, rope.positive_float("factor"))
    elif kind == "llama3":
        spec = _llama3_rope(rope, theta, max_positions)
    else:
        spec = RopeSpec(theta)
    rope.finish()
    return spec


def _llama3_rope(rope: ConfigReader, theta: float, max_positions: int) -> RopeSpec:
    spec = RopeSpec(
        theta=theta,
        kind="llama3",
        factor=rope.positive_float("factor"),
        low_freq_factor=rope.positive_float("low_freq_factor"),
        high_freq_factor=rope.positive_float("high_freq_factor"),
        original_max_positions=rope.positive_int("original_max_position_embeddings", max_positions),
    )
    if spec.high_freq_factor <= spec.low_freq_factor:
        raise rope.invalid("high_freq_factor", spec.high_freq_factor, "must exceed low_freq_factor")
    return spec


def _eos_token_ids(config: ConfigReader, model_dir: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the stop tokens of both files: chat checkpoints name the turn's end in the second."""
    ids = list(config.token_ids("eos_token_id"))
    path = model_dir / "generation_config.json"
    if path.exists():
        ids += ConfigReader(read_json_object(path)).token_ids("eos_token_id")
    outside = [item for item in ids if not 0 <= item < vocab_size]
    if outside:
        message = f"eos_token_id {outside[0]} is outside the vocabulary of {vocab_size} tokens"
        raise ReasonedError(Reason.INVALID_CONFIG, message)
    return tuple(dict.fromkeys(ids))
