"""Serves a model of transformers: its own modules, but our attention, our linear layers, our cache.

Before it serves, two requests are computed in chunks of mixed batches and compared with the
model's own forward pass: what does not come out the same is refused. Imports transformers; see
`models/load.py`.

Shape legend: T tokens, S rows of logits, V vocabulary, Q/K query and key/value heads, D head size,
N tokens of one
request, I/O features in/out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.attention.base import (
    AttentionBackend,
    KvLayout,
    PagedKv,
    StepAttention,
)
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.linear import Linear
from graft_runtime.layers.lora.base import LoraPool, LoraRows
from graft_runtime.layers.lora.choose import prepare_lora
from graft_runtime.models import attention_tap
from graft_runtime.models.foreign_arch import ForeignArch
from graft_runtime.models.mlp import AdaptedLinear
from graft_runtime.models.self_check import ALLOWED, Forward, sample_prompts, worst_error
from graft_runtime.models.transformers_probe import first_line, refusal


class Step:
    """What one forward pass needs inside the model; the tap of every attention module."""

    def __init__(self) -> None:
        self.attention: StepAttention
        self.token_lora: LoraRows | None = None
        self.logits_lora: LoraRows | None = None
        self.logits_rows_S: Tensor | None = None
        """None: the logits of all tokens are wanted."""
        self.layer_of: dict[int, int] = {}
        """Layer of each attention module, by its identity."""

    def attend(
        self,
        module: nn.Module,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        _options: dict[str, Any],
    ) -> Tensor:
        """Pass a module's heads to the paged cache; shapes and dtypes as of `Tap.attend`."""
        return self.attention.attend(self.layer_of[id(module)], q_TQD, k_TKD, v_TKD)


class ServedLinear(nn.Module):
    """Stands where the model had a linear layer."""

    def __init__(self, linear: AdaptedLinear, step: Step) -> None:
        super().__init__()
        self._linear = linear
        self._step = step

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each token, with its adapter: ``[..., I]`` to ``[..., O]``, the same dtype."""
        out_TO = self._linear(x.reshape(-1, x.shape[-1]), self._step.token_lora)
        return out_TO.view(*x.shape[:-1], -1)


class ServedHead(nn.Module):
    """Stands where the model had its output projection; computes only the rows that are wanted."""

    def __init__(self, linear: AdaptedLinear, step: Step) -> None:
        super().__init__()
        self._linear = linear
        self._step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[1, S, V]`` from hidden states ``[1, T, I]`` of the serving dtype."""
        x_TI = x.reshape(-1, x.shape[-1])
        rows_S = self._step.logits_rows_S
        x_SI = x_TI if rows_S is None else x_TI.index_select(0, rows_S)
        return self._linear(x_SI, self._step.logits_lora)[None]


class TransformersModel:
    """A causal language model of transformers over packed batches."""

    def __init__(
        self,
        model: Any,
        arch: ForeignArch,
        *,
        attention: AttentionBackend,
        lora: LoraPool | None,
        kv: PagedKv,
    ) -> None:
        """Take over a model's attention and linear layers.

        Args:
            model: The model with its weights, on its device, in the serving dtype.
            arch: What the probe saw of it.
            attention: Where its keys and values go.
            lora: Memory for adapters, if they are to be served.
            kv: What ``attention`` keeps them in.
        """
        self.kv = kv
        self._model = model
        self._attention = attention
        self._lora = lora
        self._step = Step()
        for layer in range(arch.num_layers):
            module = model.get_submodule(arch.module_path(layer, arch.attention_path))
            attention_tap.set_tap(module, self._step)
            self._step.layer_of[id(module)] = layer
            for group in arch.lora_groups:
                path = arch.module_path(layer, group.slices[0].module)
                linear = self._adapted(layer, group.name, path)
                self._replace(path, ServedLinear(linear, self._step))
        head = arch.head.path
        self._replace(head, ServedHead(self._adapted(None, "lm_head", head), self._step))
        model.set_attn_implementation(attention_tap.NAME)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Compute one step: write its keys and values, return float32 logits ``[S, V]``.

        Call under ``torch.inference_mode``.
        """
        step = self._step
        lora = prepare_lora(self._lora, batch) if self._lora is not None else None
        step.attention = self._attention.prepare(batch)
        step.token_lora = lora.tokens if lora else None
        step.logits_lora = lora.logits if lora else None
        step.logits_rows_S = batch.logits_rows_S
        output = self._model(
            input_ids=batch.token_ids_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
        )
        logits_SV: Tensor = output.logits[0].float()
        return logits_SV

    def _adapted(self, layer: int | None, group: str, path: str) -> AdaptedLinear:
        linear = self._model.get_submodule(path)
        slab = self._lora.slabs[(layer, group)] if self._lora is not None else None
        bias = linear.bias
        base = Linear(linear.weight.detach(), None if bias is None else bias.detach())
        return AdaptedLinear(base, slab)

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, module)


def load_foreign_model(
    model_dir: Path, arch: ForeignArch, dtype: torch.dtype, device: torch.device
) -> Any:
    """Let transformers load a checkpoint, from safetensors files only, with attention of its own.

    Args:
        model_dir: The checkpoint. Not needed any more afterwards: no weight is a view of a file.
        arch: From `probe` of the same folder.
        dtype: The serving dtype.
        device: Where the model shall lie.

    Returns:
        A transformers model in evaluation mode.

    Raises:
        ReasonedError: A tensor is missing, left over or misshapen, or the files cannot be read.
    """
    try:
        # Code that a checkpoint brings along is never run.
        model, report = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a foreign model's code may raise anything
        why = f"transformers cannot load it: {first_line(error)}"
        raise refusal(arch.architecture, why) from error
    for what, reason in (
        ("missing_keys", Reason.MALFORMED_ARTIFACT),
        ("unexpected_keys", Reason.UNUSED_TENSORS),
        ("mismatched_keys", Reason.SHAPE_MISMATCH),
    ):
        if report.get(what):
            name = min(str(key) for key in report[what])
            raise ReasonedError(reason, f"the checkpoint has {what.replace('_', ' ')}: {name!r}")
    model = model.eval().requires_grad_(False).to(device)
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu":
            weight.data = weight.data.clone()  # it may be a view of the file
    return model


def own_logits(
    model: Any, arch: ForeignArch, kv: KvLayout, device: torch.device
) -> list[tuple[list[int], Tensor]]:
    """Return two prompts and what the model itself makes of each, alone and whole.

    Args:
        model: From `load_foreign_model`, with its own attention still.
        arch: Its description.
        kv: The cache that the prompts must fit.
        device: Where the model lies.

    Returns:
        For each prompt its tokens and logits ``[N, V]``, in whatever dtype the model gives.
    """
    with torch.inference_mode():
        return [
            (tokens, model(torch.tensor([tokens], device=device), use_cache=False).logits[0])
            for tokens in sample_prompts(arch.vocab_size, kv, arch.max_positions)
        ]


def refuse_unlike(
    model: Forward,
    arch: ForeignArch,
    own: Sequence[tuple[list[int], Tensor]],
    dtype: torch.dtype,
    kv: KvLayout,
    device: torch.device,
) -> None:
    """Compare a served model with its own forward pass.

    Args:
        model: What is to serve.
        arch: Its description, for the refusal.
        own: From `own_logits`.
        dtype: The serving dtype, which decides how much may differ (`ALLOWED`).
        kv: Size of the model's cache, which nobody uses yet.
        device: Where the model lies.

    Raises:
        ReasonedError: UnsupportedModel: it differs, or does not run.
    """
    prompts, logits = [tokens for tokens, _ in own], [logits_NV for _, logits_NV in own]
    try:
        off = worst_error(model, prompts, logits, kv, device)
    except Exception as error:  # a foreign model's code may raise anything
        why = f"it does not run in chunks over a paged cache: {first_line(error)}"
        raise refusal(arch.architecture, why) from error
    if not off <= ALLOWED[dtype]:
        why = f"in chunks over a paged cache it differs from its own forward pass by {off:.2g}"
        raise refusal(arch.architecture, f"{why} of its logits' spread")
