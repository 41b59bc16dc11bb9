"""Fields that ask for a watermark: yes or no, or how, in the words of transformers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from graft_protocol.config import ServerSettings
from graft_runtime.ipc.messages import Watermark
from graft_runtime.server.fields import Fields, Finite


class WatermarkFields(Fields):
    """transformers' ``WatermarkingConfig``; the first three default to the service's own."""

    greenlist_ratio: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    bias: Annotated[Finite, Field(ge=-100, le=100)] | None = None
    hashing_key: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: Annotated[int, Field(ge=1, le=64)] = 1

    def told(self, settings: ServerSettings) -> Watermark:
        """Return what the engine is told."""
        own = {
            "greenlist_ratio": settings.watermark_greenlist_ratio,
            "bias": settings.watermark_bias,
            "hashing_key": settings.watermark_hashing_key,
        }
        given = {name: value for name, value in self if value is not None}
        return Watermark(**(own | given))


def _yes_or_no(value: Any) -> Any:
    if value is True:
        return {}
    return None if value is False else value


WatermarkField = Annotated[WatermarkFields | None, BeforeValidator(_yes_or_no)]
"""``true`` takes the service's own."""
