"""Holds a manifest against the types that the official client has for it.

An API server prunes or refuses fields that it does not know; this finds them without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubernetes import client
from pydantic import ValidationError

# The client takes text alone for quantities, the API numbers as well.
_QUANTITIES = {"limits", "requests"}


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return what no API server would take, as `path: problem`."""
    version = manifest["apiVersion"].rpartition("/")[2]
    name = f"{version.capitalize()}{manifest['kind']}"
    model = getattr(client, name, None)
    if model is None:
        return [f"{manifest['apiVersion']} {manifest['kind']}: not a kind the client knows"]
    try:
        model.model_validate(_plain(manifest))
    except ValidationError as error:
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return []


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        # In a CRD, the schema of such a field has the field's name.
        is_quantity = key in _QUANTITIES and "additionalProperties" not in value
        return {k: str(v) if is_quantity else _plain(v, k) for k, v in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
