"""The base class of every message on the wire: camelCase, frozen, closed to unknown fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Message(BaseModel):
    """An immutable value whose JSON form uses camelCase keys.

    Unknown keys are an error: a field that one side does not know must raise the protocol version
    and never be dropped in silence.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="constants",
    )

    def to_json(self) -> str:
        """Return the canonical JSON text: declared order, no defaults left out."""
        return self.model_dump_json(by_alias=True)
