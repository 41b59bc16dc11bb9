"""Types of single fields that several parts of the specs share, each with its bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from graft_operator.resources.quantity import QUANTITY_MAX, QUANTITY_PATTERN

LABEL_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
KEY_PATTERN = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=1, le=2**53)]
SECONDS_MAX = 86_400
Seconds = Annotated[float, Field(ge=0.1, le=SECONDS_MAX)]
SecondsOrZero = Annotated[float, Field(ge=0, le=SECONDS_MAX)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
Namespace = Annotated[str, Field(min_length=1, max_length=63)]
LabelKey = Annotated[str, Field(pattern=KEY_PATTERN, max_length=317)]
LabelValue = Annotated[str, Field(pattern=LABEL_PATTERN, max_length=63)]
Quantity = Annotated[
    int | Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=QUANTITY_MAX)],
    Field(union_mode="left_to_right"),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "maxLength": QUANTITY_MAX,
        }
    ),
]
