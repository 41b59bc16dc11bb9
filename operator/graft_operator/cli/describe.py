"""`graft describe`: one object's spec, conditions, failures and events, for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from graft_operator.cli.get import age, table
from graft_operator.cli.objects import parse_what, select
from graft_operator.cluster.state import EventRecord, read_snapshot
from graft_operator.resources.meta import Manifest, key_of

_SHOWN_APART = ("conditions", "failures")


def run_describe(what: str, folder: Path) -> None:
    """Print one object.

    Raises:
        LocalModeError: Local mode is not running in the folder.
        click.ClickException: No such object, or several.
    """
    kinds, name = parse_what(what)
    if name is None:
        raise click.UsageError("name one object: KIND/NAME")
    snapshot = read_snapshot(folder)
    objects = select(snapshot, kinds, name)
    if len(objects) > 1:
        names = ", ".join(f"{item['metadata']['namespace']}/{name}" for item in objects)
        raise click.ClickException(f"{name} is not unique: {names}")
    about = str(key_of(objects[0]))
    events = [event for event in snapshot.events if event.about == about]
    click.echo("\n".join(_lines(objects[0], events)))


def _lines(item: Manifest, events: list[EventRecord]) -> Iterator[str]:
    metadata, status = item["metadata"], item.get("status") or {}
    yield f"Name:        {metadata['name']}"
    yield f"Namespace:   {metadata['namespace']}"
    yield f"Kind:        {item['kind']}"
    yield f"Generation:  {metadata['generation']} (observed {status.get('observedGeneration', 0)})"
    yield "Spec:"
    yield _indented(item["spec"])
    yield "Status:"
    yield _indented(
        {k: v for k, v in status.items() if k not in _SHOWN_APART and v not in ([], "")}
    )
    yield "Conditions:"
    yield _rows(
        ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"],
        [
            [c["type"], c["status"], c["reason"], age(c["lastTransitionTime"]), c["message"]]
            for c in status.get("conditions", [])
        ],
    )
    if status.get("failures"):
        yield "Failures:"
        yield _rows(
            ["REASON", "PODS", "EXAMPLE", "MESSAGE"],
            [[f["reason"], str(f["pods"]), f["example"], f["message"]] for f in status["failures"]],
        )
    yield "Events:"
    yield _rows(
        ["AGE", "TYPE", "REASON", "MESSAGE"],
        [[age(e.time), e.type, e.reason, e.message] for e in events],
    )


def _indented(value: Any) -> str:
    text = yaml.safe_dump(value, sort_keys=False).rstrip()
    return "\n".join(f"  {line}" for line in text.splitlines())


def _rows(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "  none"
    return "\n".join(f"  {line}" for line in table([header, *rows]).splitlines())
