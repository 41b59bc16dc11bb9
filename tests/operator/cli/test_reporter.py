"""What a person is told while things come up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graft_operator.cli.reporter import Reporter
from graft_operator.cluster.store import ObjectStore
from graft_operator.resources.meta import ObjectKey, uid_of
from tests.support.local import adapter_document, service_document

KEY = ObjectKey("LoraAdapter", "default", "stuck")


class Told:
    """A reporter of one adapter, and the lines that it said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.store = ObjectStore()
        self.reporter = Reporter(Path("/somewhere"), self._say)
        self.store.subscribe(self.reporter.on_change)
        self._uid = uid_of(self.store.apply(adapter_document("stuck", "s3://bucket/stuck")))

    def _say(self, line: str, *, bad: bool = False, good: bool = False) -> None:
        self.lines.append(("! " if bad else "+ " if good else "") + line)

    def turn(self, status: str, reason: str, message: str) -> None:
        """Have the adapter's conditions become these."""
        common: dict[str, Any] = {"reason": reason, "message": message, "observedGeneration": 1}
        conditions = [{"type": type_, "status": status, **common} for type_ in ("Ready", "Loaded")]
        self.store.set_status(KEY, self._uid, {"servedName": "stuck", "conditions": conditions})


@pytest.fixture
def told() -> Told:
    return Told()


def test_an_adapter_that_nobody_looked_at_is_pending(told: Told) -> None:
    assert list(told.reporter.unready(told.store)) == ["lora/stuck: not Ready: Pending"]


def test_an_adapter_that_cannot_be_loaded_is_told_once_and_listed_with_its_reason(
    told: Told,
) -> None:
    for _ in range(2):
        told.turn("False", "SourceNotFound", "there is nothing there")
    assert told.lines == ["! lora/stuck: SourceNotFound: there is nothing there"]
    assert list(told.reporter.unready(told.store)) == [
        "lora/stuck: not Ready: SourceNotFound: there is nothing there"
    ]


def test_an_adapter_on_its_way_is_listed_and_not_called_bad(told: Told) -> None:
    told.turn("False", "Pending", "no pod of the service is ready yet")
    assert told.lines == []
    assert list(told.reporter.unready(told.store)) == [
        "lora/stuck: not Ready: Pending: no pod of the service is ready yet"
    ]


def test_a_part_of_a_spec_that_does_not_work_is_told_beside_what_serves(told: Told) -> None:
    uid = uid_of(told.store.apply(service_document()))
    accepted = {"type": "Accepted", "status": "False", "reason": "InvalidSpec", "message": "a key"}
    ready = {"type": "Ready", "status": "True", "reason": "Available", "message": ""}
    status = {"url": "http://x", "readyReplicas": 1, "conditions": [accepted, ready]}
    told.store.set_status(ObjectKey("InferenceService", "default", "tiny"), uid, status)
    assert told.lines == [
        "+ gis/tiny: Ready at http://x (1 of 1 pods)",
        "! gis/tiny: InvalidSpec: a key",
    ]
