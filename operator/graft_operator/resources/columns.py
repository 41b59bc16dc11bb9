"""The printer columns of both kinds: what `kubectl get` and `graft get` show.

One list feeds the CRDs and the local command, so the two cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE


@dataclass(frozen=True)
class Column:
    """One column; `priority` 1 is shown only by ``-o wide``."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    priority: int = 0


def _condition(type_: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


COLUMNS: dict[str, tuple[Column, ...]] = {
    KIND_SERVICE: (
        Column("Model", ".spec.model.uri"),
        Column("Ready", _condition("Ready", "status")),
        Column("Replicas", ".status.readyReplicas", "integer"),
        Column("Desired", ".spec.replicas", "integer"),
        Column("Adapters", ".status.adapters.ready", "integer"),
        Column("Reason", _condition("Ready", "reason"), priority=1),
        Column("Update", ".status.updateAvailable", priority=1),
        Column("URL", ".status.url", priority=1),
        Column("Age", ".metadata.creationTimestamp", "date"),
    ),
    KIND_ADAPTER: (
        Column("Service", ".spec.inferenceServiceRef.name"),
        Column("Served", ".status.servedName"),
        Column("Ready", _condition("Ready", "status")),
        Column("Replicas", ".status.readyReplicas", "integer"),
        Column("Desired", ".status.desiredReplicas", "integer"),
        Column("Reason", _condition("Loaded", "reason")),
        Column("Revision", ".status.currentRevision.id", priority=1),
        Column("Candidate", ".status.candidateRevision.id", priority=1),
        Column("Weight", ".status.candidateRevision.weight", "integer", priority=1),
        Column("Age", ".metadata.creationTimestamp", "date"),
    ),
}

_STEP = re.compile(r'\.(\w+)|\[\?\(@\.(\w+)=="([^"]*)"\)\]')


def read_path(manifest: Mapping[str, Any], path: str) -> Any:
    """Evaluate the part of JSONPath that the columns use; None where nothing is."""
    value: Any = manifest
    for field, filter_field, wanted in _STEP.findall(path):
        if field:
            value = value.get(field) if isinstance(value, Mapping) else None
        else:
            items = value if isinstance(value, list) else []
            value = next((item for item in items if item.get(filter_field) == wanted), None)
    return value
