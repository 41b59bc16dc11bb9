"""The statuses of both kinds: bounded, written by the operator alone, read by anyone."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, model_validator

from graft_operator.constants import ENDPOINTS_MAX, FAILURES_MAX
from graft_operator.resources.fields import Moment, Signature
from graft_operator.resources.meta import Condition, Manifest, Open
from graft_protocol.digest import DIGEST_PATTERN
from graft_protocol.revisions import parse_revision

Text = Annotated[str, Field(max_length=1024)]
Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    ),
]


class ResolvedModel(Open):
    """The base model as the pods found it."""

    digest: Text | None = None
    """Content identity."""
    bytes: int | None = None
    """Size of its files, bytes."""


class AdapterCounts(Open):
    """The service's adapters in numbers."""

    registered: int = 0
    """Accepted and part of the desired set."""
    ready: int = 0
    """A request for it succeeds now."""
    failed: int = 0
    """Its wanted revision cannot be loaded."""
    set_hash: Text = ""
    """Names the desired set."""
    pods_in_sync: int = 0
    """Pods that report this set."""


class ServiceStatus(Open):
    """What is true of an InferenceService."""

    observed_generation: int = 0
    """The generation of the spec all this was decided for."""
    conditions: Conditions = ()
    """`Accepted`, `PodsScheduled`, `Available`, `Progressing`, `AdaptersSynced`, `UpToDate` (the
    pods have the operator's newest template and image) and `Ready`, the summary; `Stalled` only
    while waiting is in vain."""
    url: Text = ""
    """Where the service listens."""
    endpoints: Annotated[tuple[Text, ...], Field(max_length=ENDPOINTS_MAX)] = ()
    """Addresses of single ready pods, the first few."""
    replicas: int = 0
    """Pods that exist."""
    ready_replicas: int = 0
    """Pods that take requests."""
    updated_replicas: int = 0
    """Pods started from the current configuration."""
    selector: Text = ""
    """Label selector of the pods."""
    template_revision: int = 0
    """Version of the pod template that the pods are made from."""
    update_available: Text | None = None
    """Name of the newer template and default image that the operator would give the pods. It waits
    for `spec.rollout.runtimeUpgrade`."""
    resolved_model: ResolvedModel | None = None
    """The base model as the pods found it."""
    adapters: AdapterCounts = AdapterCounts()
    """The service's adapters in numbers."""


class RevisionStatus(Open):
    """One version of an adapter's content.

    The desired set is made from it, so it is held to what an entry of the set is held to.
    """

    id: Text
    """`<namespace>/<name>@<digest12>`, or `@pending-...` while the digest is unknown."""
    digest: Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)] | None = None
    """Content identity."""
    signature: Signature | None = None
    """Of the digest, as the spec had it."""
    uri: Text
    """Where this version's files are."""
    chat_template: bool | None = None
    """Whether its own chat template belongs to it."""
    credential: Text | None = None
    """Key of the credential that opens them."""
    source_hash: Text
    """Names the source as the spec had it, so that a changed spec is noticed."""
    bytes: int | None = None
    """Size of its files, bytes."""
    rank: int | None = None
    """Largest rank of any module."""
    target_modules: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    """Kinds of modules it changes."""
    ready_replicas: int = 0
    """Ready pods that can serve it."""
    weight: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the adapter's requests that it gets, while steps lead up to all of them."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Which step it has come to, from 0."""
    step_since: Moment | None = None
    """When that began."""

    @model_validator(mode="after")
    def _names_its_digest(self) -> RevisionStatus:
        if parse_revision(self.id).is_pending != (self.digest is None):
            raise ValueError("a pinned version has a digest, a pending one has none")
        return self


class Rejection(Open):
    """A version that was taken out again. It is not tried again before the source changes."""

    id: Text
    """Its id."""
    source_hash: Text
    """Names the source as the spec had it."""
    reason: Text
    """Why, as one word."""
    message: Text
    """Why, for people."""


class Failure(Open):
    """One kind of failure, however many pods have it."""

    reason: Text
    """Why, as one word."""
    message: Text
    """Why, for people, as one of the pods said it."""
    pods: int
    """How many pods."""
    example: Text
    """One of them."""


class AdapterStatus(Open):
    """What is true of a LoraAdapter."""

    observed_generation: int = 0
    """The generation of the spec all this was decided for."""
    conditions: Conditions = ()
    """`Accepted`, `Resolved`, `Loaded` (the wanted revision), `RolloutProgressing` and `Ready` (a
    request succeeds); `Stalled` only while waiting is in vain."""
    served_name: Text = ""
    """The name requests use."""
    current_revision: RevisionStatus | None = None
    """The version that every ready pod was last seen to serve."""
    candidate_revision: RevisionStatus | None = None
    """The version on its way in; the current one serves until it is there."""
    rejected_revision: Rejection | None = None
    """The version that the spec asks for and that was taken out again."""
    desired_replicas: int = 0
    """Ready pods of the service."""
    ready_replicas: int = 0
    """Those on which a request for this adapter succeeds."""
    failures: Annotated[tuple[Failure, ...], Field(max_length=FAILURES_MAX)] = ()
    """What goes wrong, the most frequent first."""


S = TypeVar("S", ServiceStatus, AdapterStatus)


def stored_status(model: type[S], manifest: Manifest) -> S:
    """Return an object's status by itself, for one whose spec cannot be read."""
    try:
        return model.model_validate(manifest.get("status") or {})
    except ValidationError:
        return model()
