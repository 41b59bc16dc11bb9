"""Fields that ask for a watermark: yes or no, or how, in the words of transformers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from graft_runtime.ipc.messages import Watermark
from graft_runtime.server.fields import Fields, Finite


class WatermarkFields(Fields):
    """transformers' ``WatermarkingConfig``, with its defaults."""

    greenlist_ratio: Annotated[Finite, Field(gt=0, lt=1)] = 0.25
    bias: Annotated[Finite, Field(ge=-100, le=100)] = 2.0
    hashing_key: Annotated[int, Field(ge=1, lt=2**63)] = 15485863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: Annotated[int, Field(ge=1, le=64)] = 1

    def told(self) -> Watermark:
        """Return what the engine is told."""
        return Watermark(**dict(self))


def _yes_or_no(value: Any) -> Any:
    if value is True:
        return {}
    return None if value is False else value


WatermarkField = Annotated[WatermarkFields | None, BeforeValidator(_yes_or_no)]
"""``true`` takes the defaults."""
