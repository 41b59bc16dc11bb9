"""What every object has in common: metadata, conditions, and the key that names it.

Plain manifests are JSON objects (`Manifest`); only our own kinds are parsed into models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from graft_operator.constants import DEFAULT_NAMESPACE

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""

Status = Literal["True", "False", "Unknown"]


class ObjectKey(NamedTuple):
    """Which object is meant, whatever its content."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def key_of(manifest: Mapping[str, Any]) -> ObjectKey:
    """Return the key of a manifest that has kind and metadata."""
    metadata = manifest["metadata"]
    namespace = metadata.get("namespace") or DEFAULT_NAMESPACE
    return ObjectKey(manifest["kind"], namespace, metadata["name"])


def uid_of(manifest: Mapping[str, Any]) -> str:
    """Return the object's identity in time; empty for a manifest that was never stored."""
    return str(manifest["metadata"].get("uid", ""))


def owner_uids(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the uids of the objects this one goes away with."""
    owners = manifest["metadata"].get("ownerReferences", [])
    return frozenset(str(owner["uid"]) for owner in owners)


class Closed(BaseModel):
    """A part of a spec: camelCase, immutable, and an unknown field is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class Open(BaseModel):
    """A part of what the cluster writes: unknown fields of other versions are passed over."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


class ObjectMeta(Open):
    """The part of the metadata that decisions need."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None


class Condition(Open):
    """One aspect of an object's state, in the form Kubernetes tools understand."""

    type: Annotated[str, Field(max_length=64)]
    """Which aspect."""
    status: Status
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64)]
    """Why, as one word that programs may rely on."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, for people."""
    observed_generation: int = 0
    """The generation of the spec this was decided for."""
    last_transition_time: str = ""
    """When `status` last changed (RFC 3339)."""


def condition_of(conditions: tuple[Condition, ...], type_: str) -> Condition | None:
    """Return the condition of one type, if it was ever set."""
    return next((condition for condition in conditions if condition.type == type_), None)
