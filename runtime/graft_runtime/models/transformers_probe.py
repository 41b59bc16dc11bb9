"""Looks at a model of transformers without its weights: what does its code ask of attention?

The model's own forward pass runs once on tensors without content. What cannot be served from a
paged cache (a state of its own, attention that goes elsewhere, options we do not implement) shows,
and is refused by name. Imports torch and transformers, so only `models/read.py` calls it, and
only for architectures that the generic decoder does not know.

Shape legend: T tokens, Q/K query and key/value heads, D head size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.models import attention_tap
from graft_runtime.models.foreign_arch import ForeignArch, ForeignLinear
from graft_runtime.models.hf_config import ConfigReader, read_json_object
from graft_runtime.models.serving_dtype import read_dtype
from graft_runtime.models.special_tokens import read_eos_token_ids

_TOKENS = 7
"""Tokens of the trial run; no layer of a real model is this narrow."""
_LAYER = re.compile(r"(?P<layers>.+?)\.(?P<index>\d+)\.(?P<rest>.+)")
_HARMLESS = frozenset(
    {"cache_position", "dropout", "layer_idx", "logits_to_keep", "position_ids", "use_cache"}
)
"""Options that are not about what a token sees."""
_BY_LENGTH = ("dynamic", "longrope")
_WINDOWED, _KINDS = "sliding_attention", ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Call:
    """One module's call of attention."""

    module: nn.Module
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    options: dict[str, Any]

    @property
    def scale(self) -> float:
        """Factor on the products of queries and keys."""
        given = self.options.get("scaling")
        return float(given) if given is not None else self.query_shape[-1] ** -0.5

    @property
    def window(self) -> int | None:
        """Tokens a token sees, itself included."""
        given = self.options.get("sliding_window")
        return int(given) if given else None

    @property
    def softcap(self) -> float | None:
        """Bound of the scaled products."""
        given = self.options.get("softcap")
        return float(given) if given else None


class Recorder:
    """A tap that attends to nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def attend(
        self,
        module: nn.Module,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """Note the call; return ``[T, Q, D]`` in the queries' dtype, of which nothing is meant."""
        query, key, value = (tuple(heads.shape) for heads in (q_TQD, k_TKD, v_TKD))
        self.calls.append(Call(module, query, key, value, options))
        return torch.empty_like(q_TQD)


def probe(model_dir: Path) -> ForeignArch:
    """Describe the model of a checkpoint.

    Raises:
        ReasonedError: UnsupportedModel says by name what stands against serving it.
    """
    reader = ConfigReader(read_json_object(model_dir / "config.json"))
    if reader.has("quantization_config"):
        raise reader.unsupported("quantization_config", reader.take("quantization_config"))
    names = reader.take("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else str(names)
    try:
        # Code that a checkpoint brings along is never run.
        config = AutoConfig.from_pretrained(
            model_dir, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, dtype=torch.bfloat16
            ).eval()
    except Exception as error:  # a foreign model's code may raise anything
        raise refusal(name, f"transformers cannot make it: {first_line(error)}") from error
    if type(model).__name__ != name:
        raise reader.unsupported("architectures", names)
    _check_kind(name, model, config)
    calls, linears = _trial(name, model)
    return _describe(name, model, calls, linears, model_dir)


def refusal(architecture: str, why: str) -> ReasonedError:
    """Make the error for a model that cannot be served."""
    return ReasonedError(Reason.UNSUPPORTED_MODEL, f"{architecture} cannot be served: {why}")


def first_line(error: Exception) -> str:
    """Shorten a foreign error to something that fits a status."""
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_kind(name: str, model: nn.Module, config: Any) -> None:
    if getattr(model, "_is_stateful", False):
        raise refusal(name, "it keeps a recurrent state between tokens")
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(name, "it has an encoder")
    if getattr(config, "attention_chunk_size", None):
        raise refusal(name, "its attention is cut into chunks (attention_chunk_size)")
    strange = [kind for kind in getattr(config, "layer_types", None) or () if kind not in _KINDS]
    if strange:
        raise refusal(name, f"it has layers of type {strange[0]}")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(one for one in ropes.values() if isinstance(one, dict))):
        if rope.get("rope_type") in _BY_LENGTH:
            raise refusal(name, f"its rope_type {rope['rope_type']} depends on a sequence's length")


def _trial(name: str, model: Any) -> tuple[list[Call], dict[str, list[tuple[int, ...]]]]:
    """Run the model's own forward pass; return its calls of attention and of linear layers."""
    recorder, shapes = Recorder(), dict[str, list[tuple[int, ...]]]()
    for path, module in model.named_modules():
        attention_tap.set_tap(module, recorder)
        if type(module) is nn.Linear:
            shapes[path] = []
            module.register_forward_pre_hook(
                lambda _module, inputs, path=path: shapes[path].append(tuple(inputs[0].shape))
            )
    token_ids = torch.zeros((1, _TOKENS), dtype=torch.int64, device="meta")
    positions = torch.arange(_TOKENS, device="meta")[None]
    try:
        model.set_attn_implementation(attention_tap.NAME)
        with torch.no_grad():
            model(input_ids=token_ids, position_ids=positions, use_cache=False)
    except Exception as error:  # a foreign model's code may raise anything
        why = f"its code does not run on packed tokens with attention of ours: {first_line(error)}"
        raise refusal(name, why) from error
    return recorder.calls, shapes


def _describe(
    name: str,
    model: Any,
    calls: list[Call],
    linears: dict[str, list[tuple[int, ...]]],
    model_dir: Path,
) -> ForeignArch:
    config = model.config
    layers_path, attention_path = _place(name, model, calls)
    _check_calls(name, config, calls)
    head = _head(name, model)
    if head.out_features != config.vocab_size:
        raise refusal(name, f"its {head.path} gives {head.out_features} logits, not vocab_size")
    max_positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(max_positions, int):
        raise refusal(name, "its config names no max_position_embeddings")
    first = calls[0]
    reader = ConfigReader(read_json_object(model_dir / "config.json"))
    return ForeignArch(
        architecture=name,
        vocab_size=config.vocab_size,
        num_layers=len(calls),
        num_kv_heads=first.key_shape[1],
        head_dim=first.key_shape[2],
        max_positions=max_positions,
        dtype=read_dtype(reader),
        eos_token_ids=read_eos_token_ids(reader, model_dir, config.vocab_size),
        attention_scale=first.scale,
        windows=tuple(call.window for call in calls),
        attention_softcap=first.softcap,
        layers_path=layers_path,
        attention_path=attention_path,
        linears=_adaptable(model, layers_path, linears, len(calls)),
        head=head,
    )


def _place(name: str, model: nn.Module, calls: list[Call]) -> tuple[str, str]:
    """Return where the layers are and where attention is in each; every layer calls it once."""
    if not calls:
        raise refusal(name, "its attention does not go through transformers' AttentionInterface")
    path_of = {id(module): path for path, module in model.named_modules()}
    match = _LAYER.fullmatch(path_of[id(calls[0].module)])
    if match is None:
        raise refusal(name, "its attention does not lie in a list of layers")
    layers, rest = match["layers"], match["rest"]
    found = [path_of[id(call.module)] for call in calls]
    count = sum(1 for _ in model.get_submodule(layers).children())
    if found != [f"{layers}.{index}.{rest}" for index in range(count)]:
        why = f"only {len(set(found))} of its {count} layers attend, or not in order and once each"
        raise refusal(name, why)
    return layers, rest


def _check_calls(name: str, config: Any, calls: list[Call]) -> None:
    first = calls[0]
    kinds = getattr(config, "layer_types", None) or [None] * len(calls)
    for index, (call, kind) in enumerate(zip(calls, kinds, strict=True)):
        shape = (_TOKENS, *first.key_shape[1:])
        if call.key_shape != shape or call.value_shape != shape:
            raise refusal(name, f"keys and values of layer {index} have other shapes than the rest")
        if call.query_shape[2:] != shape[2:] or call.query_shape[1] % shape[1]:
            raise refusal(name, f"query heads of layer {index} do not fit its key heads")
        if call.scale != first.scale or call.softcap != first.softcap:
            raise refusal(name, f"layer {index} scales or bounds its scores unlike the rest")
        if kind == _WINDOWED and call.window is None:
            raise refusal(name, f"layer {index} has a window that its attention is not told")
        is_causal = call.options.get("is_causal", getattr(call.module, "is_causal", True))
        if is_causal is False:
            raise refusal(name, f"layer {index} lets tokens see what comes after them")
        known = _HARMLESS | {"scaling", "sliding_window", "softcap", "is_causal"}
        for option in sorted(call.options.keys() - known):
            if call.options[option] is not None and call.options[option] is not False:
                raise refusal(name, f"its attention needs {option}")


def _head(name: str, model: Any) -> ForeignLinear:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise refusal(name, "its output projection is no plain linear layer")
    path = next(path for path, module in model.named_modules() if module is head)
    return ForeignLinear(path, head.in_features, head.out_features)


def _adaptable(
    model: nn.Module, layers_path: str, shapes: dict[str, list[tuple[int, ...]]], num_layers: int
) -> tuple[ForeignLinear, ...]:
    """Return the linear layers that all layers have and every token passes through once."""

    def of_layer(index: int) -> Iterable[ForeignLinear]:
        prefix = f"{layers_path}.{index}."
        for path, calls in shapes.items():
            if path.startswith(prefix) and len(calls) == 1 and _is_per_token(calls[0]):
                linear: Any = model.get_submodule(path)
                rest = path.removeprefix(prefix)
                yield ForeignLinear(rest, linear.in_features, linear.out_features)

    common = set(of_layer(0)).intersection(*(of_layer(index) for index in range(1, num_layers)))
    return tuple(one for one in of_layer(0) if one in common)


def _is_per_token(shape: tuple[int, ...]) -> bool:
    return shape[:-1] in ((_TOKENS,), (1, _TOKENS))
