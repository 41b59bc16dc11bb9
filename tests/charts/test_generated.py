"""What the chart repeats from elsewhere is checked in as generated, and its own words agree."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import (
    CHART,
    ChartSourceError,
    crd_template,
    generated_files,
    values_of,
    with_table,
)
from tests.support.source_tree import ROOT

SCHEMA = json.loads((ROOT / CHART / "values.schema.json").read_text())
FILES = generated_files()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_generated_file_is_checked_in_as_generated(path: Path) -> None:
    assert (ROOT / path).read_text() == FILES[path], "run `make generate`"


def test_every_crd_is_in_the_chart_and_nothing_else_is() -> None:
    crds = {path.name for path in (ROOT / "crds").glob("*.yaml")}
    assert crds
    assert {path.name for path in (ROOT / CHART / "templates/crds").iterdir()} == crds


def test_a_crd_that_would_be_read_as_a_template_is_refused() -> None:
    with pytest.raises(ChartSourceError, match="read as a template"):
        crd_template("a.yaml", "metadata:\n  name: a\nspec:\n  x: '{{ y }}'\n")


def test_a_crd_with_metadata_of_its_own_is_refused() -> None:
    with pytest.raises(ChartSourceError, match="not just the name"):
        crd_template("a.yaml", "metadata:\n  name: a\n  labels: {}\nspec: {}\n")


def test_a_readme_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ChartSourceError, match="marks"):
        with_table("# Chart\n", SCHEMA)


def test_the_chart_carries_the_distributions_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


def test_the_file_of_values_holds_exactly_the_defaults_of_the_schema() -> None:
    values = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())
    sections = {value.path for value in values_of(SCHEMA) if value.is_section}
    defaults = {value.path: value.default for value in values_of(SCHEMA) if not value.is_section}
    assert dict(_leaves(values, sections)) == defaults


def _leaves(
    node: Any, sections: set[tuple[str, ...]], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, item in node.items():
        if (*path, name) in sections:
            yield from _leaves(item, sections, (*path, name))
        else:
            yield (*path, name), item


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, item in node.get("properties", {}).items():
        yield f"{path}.{name}", item
        yield from _nodes(item, f"{path}.{name}")


NODES = dict(_nodes(SCHEMA))


@pytest.mark.parametrize(("path", "node"), list(NODES.items()), ids=list(NODES))
def test_a_value_is_described_and_an_object_with_fields_is_closed(
    path: str, node: dict[str, Any]
) -> None:
    in_list = path.removeprefix(".").split(".")[0] in {"env", "imagePullSecrets"}
    assert node.get("description") or in_list
    if "properties" in node:
        assert node["additionalProperties"] is False
    elif path != ".global" and not in_list:
        assert "default" in node
