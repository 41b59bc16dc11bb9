"""What a runtime pod reports of itself at ``GET /internal/status``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from graft_protocol.base import Message
from graft_protocol.digest import content_hash
from graft_protocol.reasons import AdapterState, EngineState, Reason
from graft_protocol.version import PROTOCOL_VERSION

_OF_THE_MOMENT: Any = {
    "load": True,
    "capacity": True,
    "revisions": {"__all__": {"active_requests", "requests", "errors", "tier"}},
}


class RevisionReport(Message):
    """Where one revision of the desired set stands in this pod."""

    revision: str
    state: AdapterState
    reason: Reason
    message: str = ""
    digest: str | None = None
    """Known as soon as resolved; for a pending revision this is the resolver's answer."""
    origin: str | None = None
    """Where the pod read it, with the commit that the URI's revision meant; None if it did not."""
    bytes: int | None = None
    """Size of the files, bytes."""
    rank: int | None = None
    """Largest rank of any module."""
    target_modules: tuple[str, ...] = ()
    weight: int | None = None
    """What it has of its name's requests, relative to the other versions; None from older pods."""
    tier: str | None = None
    """The nearest tier that holds the weights now."""
    active_requests: int = 0
    requests: int = 0
    """Requests that it has ended in this pod, however they ended."""
    errors: int = 0
    """Those of them that failed by the server's fault."""
    warning: str = ""
    """What its owner may want to look at, though it serves; for people. Older pods say nothing."""


class ShardReport(Message):
    """The content of one shard as this pod last understood it."""

    hash: str
    """Hash of the content in force; empty before the first good one."""
    reason: Reason | None = None
    """Why the newest content is not in force, if so."""
    message: str = ""


class CapacityReport(Message):
    """What the pod could hold."""

    device_pages: int = 0
    """Rank-16 pages for adapters on the device."""
    device_pages_free: int = 0
    max_rank: int = 0
    kv_blocks: int = 0


class LoadReport(Message):
    """What the pod is doing now."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0


class ModelReport(Message):
    """The base model that is served."""

    served_name: str
    uri: str
    origin: str | None = None
    """Where the pod read it, with the commit that the URI's revision meant; None if it did not."""
    digest: str | None = None
    bytes: int | None = None
    max_model_len: int | None = None


class ProgressReport(Message):
    """How far start-up has come."""

    phase: str
    """What is being done, in a few words: ``downloading model``, ``loading weights``, ..."""
    done_bytes: int = 0
    total_bytes: int = 0


class RuntimeStatus(Message):
    """One pod's whole report. ``set_hash`` tells which desired set the revisions answer to."""

    protocol: int = PROTOCOL_VERSION
    version: str
    """Version of the runtime's distribution."""
    pod: str
    state: EngineState
    reason: Reason | None = None
    message: str = ""
    ready: bool = False
    """Exactly what ``/readyz`` answers."""
    engine_restarts: int = 0
    loader_restarts: int = 0
    model: ModelReport
    progress: ProgressReport | None = None
    set_hash: str = ""
    shards: tuple[ShardReport, ...] = ()
    revisions: tuple[RevisionReport, ...] = ()
    capacity: CapacityReport = Field(default_factory=CapacityReport)
    load: LoadReport = Field(default_factory=LoadReport)


def lasting_hash(status: RuntimeStatus) -> str:
    """Return a hash of what a report says that requests alone do not change."""
    text = status.model_dump_json(by_alias=True, exclude=_OF_THE_MOMENT)
    return content_hash(text.encode())
