"""The checked-in CRDs and their reference are what the models generate."""

import re
from typing import Any

import pytest
import yaml

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE
from graft_operator.resources.columns import COLUMNS, read_path
from graft_operator.resources.crdgen import ROOT, crd, generated_files
from graft_protocol.reasons import Reason


@pytest.mark.parametrize("path", generated_files())
def test_a_generated_file_is_checked_in_as_generated(path: Any) -> None:
    assert (ROOT / path).read_text() == generated_files()[path], "run `make generate`"


def schemas() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def walk(path: str, node: dict[str, Any]) -> None:
        found.append((path, node))
        for name, child in node.get("properties", {}).items():
            walk(f"{path}.{name}", child)
        for part in ("items", "additionalProperties"):
            if part in node:
                walk(f"{path}[]", node[part])

    for kind in (KIND_SERVICE, KIND_ADAPTER):
        version = crd(kind)["spec"]["versions"][0]
        walk(kind, version["schema"]["openAPIV3Schema"])
    return found


@pytest.mark.parametrize(("path", "node"), schemas(), ids=[path for path, _ in schemas()])
def test_a_schema_node_is_structural_bounded_and_described(path: str, node: dict[str, Any]) -> None:
    kinds = {"object", "array", "string", "integer", "number", "boolean"}
    assert node.get("x-kubernetes-int-or-string") or node["type"] in kinds
    allowed = {"default", "description", "enum", "items", "maxItems", "maxLength", "maximum"}
    allowed |= {
        "additionalProperties",
        "format",
        "maxProperties",
        "minProperties",
        "x-kubernetes-int-or-string",
    }
    allowed |= {"minItems", "minLength", "minimum", "pattern", "properties", "required", "type"}
    allowed |= {"x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-validations"}
    assert node.keys() <= allowed
    in_spec = re.match(r"\w+\.spec\.", path) is not None
    is_ours = re.match(r"\w+\.(spec|status)\b", path) is not None
    if node.get("type") == "array":
        assert "maxItems" in node
    if "additionalProperties" in node:
        assert "maxProperties" in node
    if in_spec and node.get("type", "string") == "string" and "enum" not in node:
        assert "maxLength" in node
    if in_spec and node.get("type") in {"integer", "number"}:
        assert "minimum" in node
        assert "maximum" in node
    if is_ours and not path.endswith("[]"):
        assert node.get("description")


def test_kinds_have_the_short_names_and_category_that_are_promised() -> None:
    names = {kind: crd(kind)["spec"]["names"] for kind in (KIND_SERVICE, KIND_ADAPTER)}
    assert names[KIND_SERVICE]["shortNames"] == ["gis"]
    assert names[KIND_ADAPTER]["shortNames"] == ["lora"]
    assert all(item["categories"] == ["graft"] for item in names.values())


def test_every_column_points_at_something_the_schema_has() -> None:
    for kind, columns in COLUMNS.items():
        version = crd(kind)["spec"]["versions"][0]
        root = version["schema"]["openAPIV3Schema"]
        for column in columns:
            if column.path.startswith(".metadata"):
                continue
            node = root
            for part in re.sub(r"\[[^\]]*\]", "", column.path).strip(".").split("."):
                node = node["items"] if node["type"] == "array" else node
                node = node["properties"][part]


def test_a_column_reads_a_condition_by_its_type() -> None:
    conditions = [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]
    manifest = {"status": {"conditions": conditions}}
    assert read_path(manifest, '.status.conditions[?(@.type=="Ready")].status') == "True"
    assert read_path(manifest, '.status.conditions[?(@.type=="Gone")].status') is None
    assert read_path({}, ".status.url") is None


def test_the_reference_explains_every_reason() -> None:
    text = (ROOT / "docs/crds.md").read_text()
    assert all(f"| `{reason}` |" in text for reason in Reason)


def test_crds_are_plain_yaml() -> None:
    for path in generated_files():
        if path.suffix == ".yaml":
            assert yaml.safe_load((ROOT / path).read_text())["kind"] == "CustomResourceDefinition"
