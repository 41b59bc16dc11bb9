"""Reads from a config what a mixture of experts is made of. Called by `models/arch.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graft_runtime.models.hf_config import ConfigReader


@dataclass(frozen=True)
class MoeFamily:
    """How a family writes down its experts; defaults are those of its config class."""

    num_experts: int
    num_experts_per_token: int
    count_fields: tuple[str, ...]
    """Names of the number of experts, of which one is there."""
    size_field: str
    expert_size: int | None
    """Default of `size_field`; None: it has none, being a field of every decoder."""
    shared_size: int | None = None
    """Default width of an expert that sees every token; None: the family has none."""
    always_normalises: bool = False
    """Whether the chosen experts' weights sum to one; else ``norm_topk_prob`` says so."""
    block: str = "mlp"
    """The checkpoint's name of the block, inside a layer."""
    expert_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    required: Mapping[str, object] = field(default_factory=dict)
    """Fields that may be present with this value only."""


@dataclass(frozen=True)
class MoeSpec:
    """A mixture of experts, the same in every layer."""

    num_experts: int
    num_experts_per_token: int
    expert_size: int
    """Features inside an expert."""
    normalises: bool
    """The chosen experts' weights are made to sum to one."""
    shared_size: int
    """Features inside the expert that sees every token; 0: there is none."""
    block: str
    expert_names: tuple[str, str, str]
    """Gate, up and down projection of an expert in the checkpoint."""


QWEN_REQUIRED: Mapping[str, object] = {"decoder_sparse_step": 1, "mlp_only_layers": []}
"""Every layer has experts."""


def read_moe(config: ConfigReader, family: MoeFamily) -> MoeSpec:
    """Take the fields about experts.

    Raises:
        ReasonedError: InvalidConfig if a token is to see more experts than there are,
            UnsupportedModel if some layers have none.
    """
    config.require(family.required)
    for name in ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"):
        config.ignore(name)  # of use in training only
    present = [name for name in family.count_fields if config.has(name)]
    count_field = present[0] if present else family.count_fields[0]
    num_experts = config.positive_int(count_field, family.num_experts)
    chosen = config.positive_int("num_experts_per_tok", family.num_experts_per_token)
    if chosen > num_experts:
        rule = f"must be at most the number of experts, {num_experts}"
        raise config.invalid("num_experts_per_tok", chosen, rule)
    shared = 0
    if family.shared_size is not None:
        shared = config.positive_int("shared_expert_intermediate_size", family.shared_size)
    normalises = family.always_normalises or config.flag("norm_topk_prob", default=False)
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=chosen,
        expert_size=config.positive_int(family.size_field, family.expert_size),
        normalises=normalises,
        shared_size=shared,
        block=family.block,
        expert_names=family.expert_names,
    )
