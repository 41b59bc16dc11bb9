"""Extremes of a schema: of each field its least, its most, what is beyond, and nothing at all.

After Acto's input generation (SOSP 2023), from our own CRDs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from graft_operator.resources.meta import Manifest

EXAMPLES = (
    "a",
    "ab/cd",
    "s3://bucket/folder",
    "https://host.example",
    "sha256:" + "0" * 64,
    "2999-01-01T00:00:00Z",
    "2999-02-31T00:00:00Z",
    "-----BEGIN PUBLIC KEY-----AAAA-----END PUBLIC KEY-----",
    "1",
)
"""Of strings: each pattern in the CRDs takes one of them, though not all of them make sense."""
Json = dict[str, Any]


class Mutation(NamedTuple):
    """A field, and what it becomes; None takes it away."""

    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        text = repr(self.value)
        return f"{'.'.join(self.path)} = {text if len(text) < 40 else text[:37] + '...'}"

    def of(self, manifest: Manifest) -> Manifest:
        """Return a manifest that has it."""
        changed = copy.deepcopy(manifest)
        target = changed
        for part in self.path[:-1]:
            target = target.setdefault(part, {})
        if self.value is None:
            target.pop(self.path[-1], None)
        else:
            target[self.path[-1]] = self.value
        return changed


def mutations(schema: Json, path: tuple[str, ...]) -> Iterator[Mutation]:
    """Yield what may be done to the fields below a path."""
    for name, child in schema.get("properties", {}).items():
        here = (*path, name)
        yield Mutation(here, None)
        if "properties" in child:
            yield Mutation(here, example(child))
            yield from mutations(child, here)
        else:
            yield from (Mutation(here, value) for value in _values(child))


def example(schema: Json) -> Any:
    """Return the least value that a schema takes."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type", "string"):
        case "object":
            fields: Mapping[str, Json] = schema.get("properties", {})
            return {name: example(fields[name]) for name in schema.get("required", ())}
        case "array":
            return [example(schema["items"])] * schema.get("minItems", 0)
        case "boolean":
            return False
        case "integer" | "number":
            return schema.get("minimum", 0)
    return next(text for text in EXAMPLES if _fits(schema, text))


def _values(schema: Json) -> Iterator[Any]:
    if "enum" in schema:
        yield from (*schema["enum"], "Nonsense")
        return
    match schema.get("type", "string"):
        case "object":
            yield from ({}, {"a": example(schema["additionalProperties"])})
        case "array":
            one = example(schema["items"])
            yield from ([], [one], [one, one], [one] * (schema["maxItems"] + 1))
        case "boolean":
            yield from (False, True)
        case "integer" | "number":
            yield from (schema["minimum"], schema["maximum"], schema["maximum"] + 1)
        case _:
            yield ""
            for text in EXAMPLES:
                longest = text + "a" * (schema["maxLength"] - len(text))
                yield from (each for each in (text, longest) if _fits(schema, each))
            yield "a" * (schema["maxLength"] + 1)


def _fits(schema: Json, text: str) -> bool:
    return re.search(schema.get("pattern", ""), text) is not None
