"""Holds a manifest against the types that the official client has for it.

An API server prunes or refuses fields it does not know; this finds them without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kubernetes import client

_CONTAINER = re.compile(r"(?P<outer>List|Dict)\[(?:str, )?(?P<inner>.+)\]")
_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "object": (object,),
    "datetime": (str,),
    "bytes": (str,),
}
# Quantities: the client calls them text, the API takes numbers as well.
_QUANTITIES = {"limits", "requests"}


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return what no API server would take, as `path: problem`."""
    version = manifest["apiVersion"].rpartition("/")[2]
    model = f"{version[0].upper()}{version[1:]}{manifest['kind']}"
    if not hasattr(client, model):
        return [f"{manifest['apiVersion']} {manifest['kind']}: not a kind the client knows"]
    return [*_problems(manifest, model, manifest["kind"])]


def _problems(value: Any, type_: str, path: str) -> Iterator[str]:
    found = _CONTAINER.fullmatch(type_)
    if found:
        yield from _in_container(value, found["outer"], found["inner"], path)
    elif type_ in _PLAIN:
        is_number_as_bool = isinstance(value, bool) and type_ in ("int", "float")
        if not isinstance(value, _PLAIN[type_]) or is_number_as_bool:
            yield f"{path}: {value!r} is no {type_}"
    elif not isinstance(value, Mapping):
        yield f"{path}: {value!r} is no object"
    else:
        yield from _in_model(value, getattr(client, type_), path)


def _in_container(value: Any, outer: str, inner: str, path: str) -> Iterator[str]:
    if outer == "List":
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for index, item in enumerate(value):
            yield from _problems(item, inner, f"{path}[{index}]")
        return
    if not isinstance(value, Mapping):
        yield f"{path}: {value!r} is no map"
        return
    for key, item in value.items():
        is_quantity = path.rpartition(".")[2] in _QUANTITIES
        yield from _problems(str(item) if is_quantity else item, inner, f"{path}.{key}")


def _in_model(value: Mapping[str, Any], model: Any, path: str) -> Iterator[str]:
    attributes = {name: attribute for attribute, name in model.attribute_map.items()}
    for name, item in value.items():
        if name not in attributes:
            yield f"{path}.{name}: unknown field"
            continue
        yield from _problems(item, model.openapi_types[attributes[name]], f"{path}.{name}")
    yield from _missing(value, model, attributes, path)


def _missing(
    value: Mapping[str, Any], model: Callable[..., Any], attributes: Mapping[str, str], path: str
) -> Iterator[str]:
    """Have the client's own constructor say which fields are required."""
    given = {attributes[name]: item for name, item in value.items() if name in attributes}
    try:
        model(**given)
    except ValueError as error:
        yield f"{path}: {error}"
