"""Names, labels and owners of children: what every rendered manifest begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from graft_operator.constants import API_VERSION, KIND_SERVICE, LABEL_CONTENT, MANAGED_BY
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.naming import LABEL_MANAGED_BY, LABEL_SERVICE

NAME_MAX = 63
"""Longest name of a Service, and longest label value, characters."""


def label_value(service_name: str) -> str:
    """Return a service's name as it may stand in a label and begin a child's name.

    Children are named after it with a suffix of up to 24 characters, so longer names, and names
    with dots, end in a hash that keeps them apart.
    """
    plain = service_name.replace(".", "-")
    if plain == service_name and len(plain) <= NAME_MAX - 24 and plain[0].isalpha():
        return plain
    digest = hashlib.sha256(service_name.encode()).hexdigest()[:8]
    head = plain if plain[0].isalpha() else f"s-{plain}"
    return f"{head[: NAME_MAX - 24 - 9].rstrip('-')}-{digest}"


def child_name(service: InferenceService, suffix: str = "") -> str:
    """Return the name of a child, at most 63 characters."""
    base = label_value(service.metadata.name)
    return f"{base}-{suffix}" if suffix else base


def selector_labels(service: InferenceService) -> dict[str, str]:
    """Return the labels that select a service's pods and children."""
    return {LABEL_SERVICE: label_value(service.metadata.name), LABEL_MANAGED_BY: MANAGED_BY}


def child(
    service: InferenceService,
    api_version: str,
    kind: str,
    name: str,
    *,
    content: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the head of a child's manifest; it goes away with its InferenceService."""
    labels = selector_labels(service)
    if content is not None:
        labels[LABEL_CONTENT] = content
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": service.metadata.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND_SERVICE,
                "name": service.metadata.name,
                "uid": service.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
