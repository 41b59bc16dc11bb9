"""`graft get`: the printer columns of what runs, or the objects themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from graft_operator.cli.objects import KINDS_OF, parse_what, select
from graft_operator.cluster.state import read_snapshot
from graft_operator.resources.columns import COLUMNS, Column, read_path
from graft_operator.resources.meta import Manifest, key_of


def run_get(what: str, folder: Path | None, output: str) -> None:
    """Print what was asked for.

    Raises:
        LocalModeError: Local mode is not running in the folder.
        click.ClickException: No such object.
    """
    if folder is None and what.partition("/")[0].lower() not in KINDS_OF and Path(what).is_dir():
        what, folder = "all", Path(what)
    kinds, name = parse_what(what)
    snapshot = read_snapshot(folder or Path())
    objects = select(snapshot, kinds, name)
    if output == "json":
        click.echo(json.dumps(_document(objects, name), indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(_document(objects, name), sort_keys=False), nl=False)
    else:
        _print_tables(objects, kinds, is_wide=output == "wide")
    for problem in snapshot.problems:
        click.secho(f"! {problem.where}: {problem.message}", fg="red", err=True)


def _document(objects: Sequence[Manifest], name: str | None) -> dict[str, Any]:
    if name is not None and len(objects) == 1:
        return objects[0]
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


def _print_tables(objects: Sequence[Manifest], kinds: Sequence[str], *, is_wide: bool) -> None:
    shown = [[item for item in objects if item["kind"] == kind] for kind in kinds]
    for index, (kind, items) in enumerate(zip(kinds, shown, strict=True)):
        if index:
            click.echo()
        if not items:
            click.echo(f"no {kind}")
            continue
        columns = [column for column in COLUMNS[kind] if is_wide or not column.priority]
        header = ["NAMESPACE", "NAME", *(column.name.upper() for column in columns)]
        rows = [[*_place(item), *(_cell(item, column) for column in columns)] for item in items]
        click.echo(table([header, *rows]))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def age(timestamp: str) -> str:
    """Return how long ago a time was, the way kubectl writes it."""
    then = datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _place(item: Manifest) -> tuple[str, str]:
    key = key_of(item)
    return key.namespace, key.name


def _cell(item: Manifest, column: Column) -> str:
    value = read_path(item, column.path)
    if value is None or value == "":
        return "-"
    return age(str(value)) if column.type == "date" else str(value)
