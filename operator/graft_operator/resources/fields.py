"""Types of single fields that several parts of the specs share, each with its bounds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from graft_operator.resources.quantity import QUANTITY_MAX, QUANTITY_PATTERN

OBJECT_NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
NAMESPACE_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
LABEL_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
KEY_PATTERN = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
PUBLIC_KEY_PATTERN = r"^\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*$"
SIGNATURE_PATTERN = r"^[A-Za-z0-9+/]+={0,2}$"
TIME_PATTERN = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z$"


def each_once(*keys: str) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return a validator of a list whose items differ in some fields.

    The list's schema says the same as ``x-kubernetes-list-type: map``: the lists of a pod that it
    becomes are of that type, and an API server takes no apply that names an item twice.
    """

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        known = set()
        for item in items:
            key = tuple(str(getattr(item, name)) for name in keys)
            if key in known:
                raise ValueError(f"{' '.join(key)} is there twice")
            known.add(key)
        return items

    return check


def _is_a_moment(text: str) -> str:
    """Refuse what only looks like one, such as the 31st of February.

    The schema's `format` has an API server do the same.
    """
    datetime.fromisoformat(text)
    return text


Moment = Annotated[
    str,
    Field(pattern=TIME_PATTERN, max_length=20, json_schema_extra={"format": "date-time"}),
    AfterValidator(_is_a_moment),
]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=1, le=2**53)]
SECONDS_MAX = 86_400
Seconds = Annotated[float, Field(ge=0.1, le=SECONDS_MAX)]
SecondsOrZero = Annotated[float, Field(ge=0, le=SECONDS_MAX)]
ObjectName = Annotated[str, Field(pattern=OBJECT_NAME_PATTERN, min_length=1, max_length=253)]
"""Of another object. It becomes a part of a path to it, so it must not hold a slash."""
Namespace = Annotated[str, Field(pattern=NAMESPACE_PATTERN, min_length=1, max_length=63)]
PublicKey = Annotated[str, Field(pattern=PUBLIC_KEY_PATTERN, max_length=1600)]
"""PEM, up to RSA of 8192 bits. A private key does not fit the pattern, so none is ever stored."""
Signature = Annotated[str, Field(pattern=SIGNATURE_PATTERN, max_length=1400)]
"""Base64 without line breaks."""
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
