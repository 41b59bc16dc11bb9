"""What mixes a token's features: one MLP, or a mixture of experts. Called by the decoder's layers.

Shape legend: T tokens, H hidden size, F features inside an MLP, E experts, k experts of a token,
n tokens of one expert, I/O features in/out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.linear import Linear
from graft_runtime.layers.lora.base import LoraRows, LoraSlab
from graft_runtime.models.families import Activation

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


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


class Mlp(Protocol):
    """One layer's mixing of features."""

    def __call__(self, x_TH: Tensor, lora: LoraRows | None) -> Tensor:
        """Return what is added to each token."""


@dataclass(frozen=True)
class DenseMlp:
    """``down(activation(gate(x)) * up(x))``, with adapters."""

    gate_up: AdaptedLinear
    down: AdaptedLinear
    activation: Activation

    def __call__(self, x_TH: Tensor, lora: LoraRows | None) -> Tensor:
        """Pass every token through."""
        return self.down(_gated(self.gate_up(x_TH, lora), self.activation), lora)


@dataclass(frozen=True)
class Expert:
    """An MLP that some tokens pass through. Nothing adapts it."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class SharedExpert:
    """An MLP that every token passes through, as far as its own gate lets it."""

    mlp: DenseMlp
    gate: Linear

    def __call__(self, x_TH: Tensor, lora: LoraRows | None) -> Tensor:
        """Return its part of the layer's output."""
        return self.mlp(x_TH, lora).mul_(self.gate(x_TH).sigmoid())


@dataclass(frozen=True)
class ExpertMlp:
    """A mixture of experts: each token passes through the few that its router scores highest.

    Source: Mixtral, arXiv:2401.04088, and Qwen's code; router, ties and order of sums as in
    transformers.
    """

    router: Linear
    experts: tuple[Expert, ...]
    experts_per_token: int
    normalises: bool
    """The chosen experts' weights are made to sum to one."""
    activation: Activation
    shared: SharedExpert | None = None

    def __call__(self, x_TH: Tensor, lora: LoraRows | None) -> Tensor:
        """Pass each token through its experts."""
        weights_Tk, experts_Tk = self._choose(x_TH)
        out_TH = self._mix(x_TH, weights_Tk, experts_Tk)
        return out_TH if self.shared is None else out_TH.add_(self.shared(x_TH, lora))

    def _choose(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 weights and numbers of each token's experts."""
        scores_TE = torch.softmax(self.router(x_TH), dim=-1, dtype=torch.float32)
        weights_Tk, experts_Tk = scores_TE.topk(self.experts_per_token, dim=-1)
        if self.normalises:
            weights_Tk /= weights_Tk.sum(dim=-1, keepdim=True)
        return weights_Tk, experts_Tk

    def _mix(self, x_TH: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Sort the pairs of token and expert by expert, so that each weight is read once."""
        order = experts_Tk.flatten().argsort(stable=True)
        counts: list[int] = torch.bincount(
            experts_Tk.flatten(), minlength=len(self.experts)
        ).tolist()
        tokens = order // self.experts_per_token
        weights = weights_Tk.flatten()[order]
        out_TH = torch.zeros_like(x_TH)
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if not count:
                continue
            part = slice(start, start + count)
            inner_nF = _gated(expert.gate_up(x_TH[tokens[part]]), self.activation)
            weighted_nH = expert.down(inner_nF) * weights[part, None]
            out_TH.index_add_(0, tokens[part], weighted_nH.to(x_TH.dtype))
            start += count
        return out_TH


def _gated(gate_up_TO: Tensor, activation: Activation) -> Tensor:
    gate_TF, up_TF = gate_up_TO.chunk(2, dim=-1)
    return _ACTIVATIONS[activation](gate_TF).mul_(up_TF)
