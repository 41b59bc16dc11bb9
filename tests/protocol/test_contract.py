"""What is promised to the other plane stays promised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graft_protocol.reasons import REASONS, Reason
from graft_protocol.schemas import DOCUMENTS, SCHEMAS_DIR, schema_text


def test_every_reason_is_documented_and_every_documented_reason_exists() -> None:
    assert set(REASONS) == set(Reason)
    assert all(info.sentence.endswith(".") for info in REASONS.values())


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_the_schemas_that_are_checked_in_are_those_of_the_models(name: str) -> None:
    assert (SCHEMAS_DIR / f"{name}.json").read_text() == schema_text(name)


def test_there_is_no_schema_without_a_document() -> None:
    assert {path.stem for path in SCHEMAS_DIR.glob("*.json")} == set(DOCUMENTS)


def required_properties(schema: dict[str, Any]) -> dict[str, list[str]]:
    objects = {"": schema, **schema.get("$defs", {})}
    return {name: sorted(one.get("required", [])) for name, one in objects.items()}


PROTOCOL_1_REQUIRED: dict[str, dict[str, list[str]]] = {
    "shard": {"": ["index"], "AdapterEntry": ["revision", "servedName", "uri"], "Tier": []},
    "runtime-status": {
        "": ["model", "pod", "state", "version"],
        "RevisionReport": ["reason", "revision", "state"],
        "ShardReport": ["hash"],
        "ModelReport": ["servedName", "uri"],
    },
    "runtime-config": {"": ["model", "service"], "ModelSettings": ["servedName", "uri"]},
    "credential": {"": []},
}


@pytest.mark.parametrize("name", sorted(PROTOCOL_1_REQUIRED))
def test_protocol_1_asks_for_no_more_fields_than_it_did(name: str) -> None:
    """A field that becomes required breaks every older peer: that takes a new protocol version."""
    required = required_properties(json.loads(schema_text(name)))
    for definition, fields in PROTOCOL_1_REQUIRED[name].items():
        assert required[definition] == fields
