"""From a pydantic model to the structural schema that Kubernetes accepts in a CRD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_KEPT = frozenset(
    {
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "minProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    }
)
_DROPPED = frozenset({"$defs", "additionalProperties", "propertyNames", "title"})
_KEY_MESSAGE = "a key does not have the form that keys here have"


class SchemaError(TypeError):
    """A model uses something that has no structural form. A bug in the model, found by its test."""


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model with everything inlined and nothing Kubernetes would refuse.

    Raises:
        SchemaError: The model needs a construct without a structural form.
    """
    schema = model.model_json_schema(by_alias=True)
    return _converted(schema, schema.get("$defs", {}))


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a value with the schema's defaults filled in, as an API server does on a write."""
    if isinstance(value, Mapping):
        filled = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = with_defaults(child, filled[name])
        return filled
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    return value


def _converted(node: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    node = _flattened(node, defs)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in _DROPPED:
            continue
        if key == "const":
            out["enum"] = [value]
        elif key == "properties":
            out[key] = {name: _converted(child, defs) for name, child in value.items()}
        elif key == "items":
            out[key] = _converted(value, defs)
        elif key == "patternProperties":
            out |= _map(value, defs)
        elif key in _KEPT:
            out[key] = _one_line(value) if key == "description" else value
        else:
            raise SchemaError(f"{key!r} has no structural form")
    if "default" in out:
        default = _without_nulls(out.pop("default"))
        out.update({"default": default} if default is not None else {})
    return out


def _map(patterns: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a map of values of one schema; a rule holds its keys, which no schema can."""
    ((pattern, value),) = patterns.items()
    rule = {"rule": f"self.all(key, key.matches('{pattern}'))", "message": _KEY_MESSAGE}
    return {"additionalProperties": _converted(value, defs), "x-kubernetes-validations": [rule]}


def _without_nulls(value: Any) -> Any:
    """Drop what is null from a default; to Kubernetes an absent field is the only null."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


def _flattened(node: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a reference and ``X | None``; what stands beside them wins over what they say."""
    flat = dict(node)
    if "anyOf" in flat:
        options = [option for option in flat.pop("anyOf") if option != {"type": "null"}]
        if len(options) != 1:
            raise SchemaError(f"a union of {len(options)} types has no structural form")
        flat = {**_flattened(options[0], defs), **flat}
    if "$ref" in flat:
        name = str(flat.pop("$ref")).rpartition("/")[2]
        flat = {**_flattened(defs[name], defs), **flat}
    return flat


def _one_line(text: str) -> str:
    return " ".join(text.split())
