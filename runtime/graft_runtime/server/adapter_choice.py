"""Which adapter a request means: a served name, or one that is loaded or merged for it first.

LoRAX's fields, which its own surface has under ``parameters`` and OpenAI's routes at the top.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.adapter_port import Blend, source_uri
from graft_runtime.server.backend import BASE_ALIASES
from graft_runtime.server.context import Frontend
from graft_runtime.server.fields import Fields, Finite, ModelName


class MergedAdapters(Fields):
    """LoRAX's `merged_adapters`, as far as it is honoured: the weighted sum of the updates."""

    ids: list[ModelName] = Field(min_length=1, max_length=8)
    weights: list[Finite] = Field(default=[], fail_fast=True)
    merge_strategy: Literal["linear"] = "linear"
    density: float | None = None
    majority_sign_method: str | None = None

    @model_validator(mode="after")
    def _as_many_weights(self) -> MergedAdapters:
        if self.weights and len(self.weights) != len(self.ids):
            message = "number of adapter IDs must match number of adapter weights"
            raise ValueError(message)
        return self

    def blend(self) -> Blend:
        """Return what is to be added up; without weights, their mean."""
        weights = self.weights or [1 / len(self.ids)] * len(self.ids)
        return Blend(tuple(self.ids), tuple(weights))


class AdapterFields(Fields):
    """The two fields beside an adapter's name."""

    adapter_source: str | None = None
    """Says that the name is a place, and that the adapter is to be loaded from there."""
    merged_adapters: MergedAdapters | None = None

    async def chosen_name(
        self, frontend: Frontend, name: str | None, *, param: str, prefix: str = ""
    ) -> str | None:
        """Return the name under which the adapter serves, after loading or merging it if need be.

        Args:
            frontend: Who loads adapters, if anybody may.
            name: What the request names.
            param: The field that does, for errors.
            prefix: Of the other two fields, for errors.

        Raises:
            RequestError: It cannot be had, or is asked for in two ways.
        """
        merged, source = self.merged_adapters, self.adapter_source
        if merged is None and source is None:
            return name
        field = f"{prefix}adapter_source" if merged is None else f"{prefix}merged_adapters"
        if frontend.adapters is None:
            message = f"`{field}` is not allowed by this service (`allowRuntimeLoading`)"
            raise InvalidRequestError(message, param=field)
        is_base = name in BASE_ALIASES or name == frontend.metrics.model_name
        if merged is not None:
            if not is_base:
                message = f"at most one of `{param}` or `merged_adapters` may name adapters"
                raise InvalidRequestError(message, param=field)
            return await frontend.adapters.blend(merged.blend())
        if is_base or name is None:
            raise InvalidRequestError(f"`{field}` needs `{param}`", param=field)
        return await frontend.adapters.demand(source_uri(name, source))
