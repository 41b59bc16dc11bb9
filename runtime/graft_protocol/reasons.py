"""The one list of states and reasons; both planes, the API errors and the conditions use it.

A program decides by ``Reason`` and never by the English message beside it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple


class AdapterState(StrEnum):
    """Where one revision stands in one runtime pod."""

    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    AVAILABLE = "Available"
    DRAINING = "Draining"
    FAILED = "Failed"


class EngineState(StrEnum):
    """Where the pod's engine stands."""

    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why something is as it is. `REASONS` tells for each what it means and who mends it."""

    ACCEPTED = "Accepted"
    RESOLVED = "Resolved"
    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    AVAILABLE = "Available"
    DEGRADED = "Degraded"
    DRAINING = "Draining"
    PROGRESSING = "Progressing"
    UNSCHEDULABLE = "Unschedulable"
    POD_REFUSED = "PodRefused"
    CHILD_REFUSED = "ChildRefused"
    ROLLOUT_BLOCKED = "RolloutBlocked"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    UPDATE_AVAILABLE = "UpdateAvailable"
    TEMPLATE_UNKNOWN = "TemplateUnknown"
    SUSPENDED = "Suspended"
    EXPIRED = "Expired"
    PAUSED = "Paused"
    ROLLED_BACK = "RolledBack"
    INVALID_SPEC = "InvalidSpec"
    TARGET_NOT_FOUND = "TargetNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    REF_NOT_PERMITTED = "RefNotPermitted"
    NAME_CONFLICT = "NameConflict"
    QUOTA_EXCEEDED = "QuotaExceeded"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_FORBIDDEN = "SourceForbidden"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SOURCE_CHANGED = "SourceChanged"
    TRUNCATED_DOWNLOAD = "TruncatedDownload"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    SIGNATURE_INVALID = "SignatureInvalid"
    UNSAFE_FORMAT = "UnsafeFormat"
    UNSAFE_PATH = "UnsafePath"
    MALFORMED_ARTIFACT = "MalformedArtifact"
    UNSUPPORTED_ADAPTER_TYPE = "UnsupportedAdapterType"
    UNSUPPORTED_TARGET = "UnsupportedTarget"
    UNSUPPORTED_DTYPE = "UnsupportedDtype"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    UNUSED_TENSORS = "UnusedTensors"
    RANK_TOO_LARGE = "RankTooLarge"
    INVALID_CONFIG = "InvalidConfig"
    SHAPE_MISMATCH = "ShapeMismatch"
    NON_FINITE_WEIGHTS = "NonFiniteWeights"
    INCOMPATIBLE_BASE_MODEL = "IncompatibleBaseModel"
    TOO_LARGE = "TooLarge"
    CACHE_FULL = "CacheFull"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    LOAD_TIMEOUT = "LoadTimeout"
    RUNTIME_UNREACHABLE = "RuntimeUnreachable"
    RUNTIME_TOO_OLD = "RuntimeTooOld"
    MALFORMED_SHARD = "MalformedShard"
    INTERNAL_ERROR = "InternalError"


Retry = Literal["none", "terminal", "retry"]


class ReasonInfo(NamedTuple):
    """What a reason means: one sentence, whether Graft tries again by itself, and who mends it."""

    sentence: str
    retry: Retry
    mended_by: str


_TENANT = "the adapter's owner"
_SERVICE = "the service's owner"
_PLATFORM = "the platform team"
_GRAFT = "Graft itself"

REASONS: dict[Reason, ReasonInfo] = {
    Reason.ACCEPTED: ReasonInfo("The service takes it.", "none", _GRAFT),
    Reason.RESOLVED: ReasonInfo("The content is known by its digest.", "none", _GRAFT),
    Reason.PENDING: ReasonInfo("Accepted; work has not begun.", "none", _GRAFT),
    Reason.DOWNLOADING: ReasonInfo("The files are being fetched.", "none", _GRAFT),
    Reason.LOADING: ReasonInfo("The weights are on their way into the engine.", "none", _GRAFT),
    Reason.AVAILABLE: ReasonInfo("A request succeeds now.", "none", _GRAFT),
    Reason.DEGRADED: ReasonInfo("Serving on some replicas only.", "retry", _GRAFT),
    Reason.DRAINING: ReasonInfo("No new requests; running ones finish.", "none", _GRAFT),
    Reason.PROGRESSING: ReasonInfo("Replicas are being started or replaced.", "none", _GRAFT),
    Reason.UNSCHEDULABLE: ReasonInfo("No node takes a pod.", "retry", _PLATFORM),
    Reason.POD_REFUSED: ReasonInfo(
        "The cluster does not let a pod be created: a quota, or a policy.", "retry", _PLATFORM
    ),
    Reason.CHILD_REFUSED: ReasonInfo(
        "The cluster does not take a part of the service: a right, a quota, a policy, or a name"
        " that somebody else's object has.",
        "retry",
        _PLATFORM,
    ),
    Reason.ROLLOUT_BLOCKED: ReasonInfo(
        "The next pod of a rollout cannot start; the others serve on.", "retry", _PLATFORM
    ),
    Reason.PROGRESS_DEADLINE_EXCEEDED: ReasonInfo(
        "A rollout has been without progress for longer than allowed.", "retry", _SERVICE
    ),
    Reason.UPDATE_AVAILABLE: ReasonInfo(
        "The operator has a newer pod template or default image.", "none", _SERVICE
    ),
    Reason.TEMPLATE_UNKNOWN: ReasonInfo(
        "The pods' template is one that this operator cannot render.", "terminal", _SERVICE
    ),
    Reason.SUSPENDED: ReasonInfo("Switched off in the spec.", "none", _TENANT),
    Reason.EXPIRED: ReasonInfo("The time of spec.expiresAt has come.", "none", _TENANT),
    Reason.PAUSED: ReasonInfo("A step waits for somebody to promote.", "none", _TENANT),
    Reason.ROLLED_BACK: ReasonInfo(
        "A new version failed too often; the one before it serves.", "terminal", _TENANT
    ),
    Reason.INVALID_SPEC: ReasonInfo("The manifest cannot work as written.", "terminal", _TENANT),
    Reason.TARGET_NOT_FOUND: ReasonInfo("No such InferenceService.", "retry", _TENANT),
    Reason.SECRET_NOT_FOUND: ReasonInfo("No such Secret, or a key is missing.", "retry", _TENANT),
    Reason.REF_NOT_PERMITTED: ReasonInfo(
        "The service does not admit adapters from this namespace.", "retry", _SERVICE
    ),
    Reason.NAME_CONFLICT: ReasonInfo("Another object already serves this name.", "retry", _TENANT),
    Reason.QUOTA_EXCEEDED: ReasonInfo("A limit of the service is reached.", "retry", _SERVICE),
    Reason.SOURCE_NOT_FOUND: ReasonInfo("Bucket, key or file does not exist.", "retry", _TENANT),
    Reason.SOURCE_FORBIDDEN: ReasonInfo(
        "The source refused the credentials, or the service does not allow the source.",
        "retry",
        _TENANT,
    ),
    Reason.SOURCE_UNAVAILABLE: ReasonInfo("The source does not answer.", "retry", _PLATFORM),
    Reason.SOURCE_CHANGED: ReasonInfo("Files changed while being read.", "retry", _TENANT),
    Reason.TRUNCATED_DOWNLOAD: ReasonInfo("Fewer bytes came than announced.", "retry", _PLATFORM),
    Reason.CHECKSUM_MISMATCH: ReasonInfo(
        "The bytes are not those of the digest.", "terminal", _TENANT
    ),
    Reason.SIGNATURE_INVALID: ReasonInfo(
        "The service asks for a trusted key's signature: it is missing, or of something else.",
        "terminal",
        _TENANT,
    ),
    Reason.UNSAFE_FORMAT: ReasonInfo("Only safetensors files are loaded.", "terminal", _TENANT),
    Reason.UNSAFE_PATH: ReasonInfo(
        "A path leaves its root or is no plain file.", "terminal", _TENANT
    ),
    Reason.MALFORMED_ARTIFACT: ReasonInfo("A file cannot be parsed.", "terminal", _TENANT),
    Reason.UNSUPPORTED_ADAPTER_TYPE: ReasonInfo(
        "The adapter's config asks for something Graft does not do.", "terminal", _TENANT
    ),
    Reason.UNSUPPORTED_TARGET: ReasonInfo(
        "The adapter changes a module Graft cannot adapt.", "terminal", _TENANT
    ),
    Reason.UNSUPPORTED_DTYPE: ReasonInfo(
        "Weights in a dtype Graft does not read.", "terminal", _TENANT
    ),
    Reason.UNSUPPORTED_MODEL: ReasonInfo(
        "The base model's family is not served.", "terminal", _SERVICE
    ),
    Reason.UNUSED_TENSORS: ReasonInfo(
        "The file holds tensors nobody would use.", "terminal", _TENANT
    ),
    Reason.RANK_TOO_LARGE: ReasonInfo(
        "The rank is above the service's maxRank.", "terminal", _SERVICE
    ),
    Reason.INVALID_CONFIG: ReasonInfo(
        "A value in a config file is out of range.", "terminal", _TENANT
    ),
    Reason.SHAPE_MISMATCH: ReasonInfo(
        "Tensor shapes do not fit the base model.", "terminal", _TENANT
    ),
    Reason.NON_FINITE_WEIGHTS: ReasonInfo("Weights hold NaN or infinity.", "terminal", _TENANT),
    Reason.INCOMPATIBLE_BASE_MODEL: ReasonInfo(
        "The adapter was trained for another base model.", "terminal", _TENANT
    ),
    Reason.TOO_LARGE: ReasonInfo("More bytes than the service allows.", "terminal", _SERVICE),
    Reason.CACHE_FULL: ReasonInfo("The pod's disk cache has no room.", "retry", _PLATFORM),
    Reason.INSUFFICIENT_CAPACITY: ReasonInfo("The pod has no room for it.", "retry", _SERVICE),
    Reason.LOAD_TIMEOUT: ReasonInfo("Loading took longer than allowed.", "retry", _PLATFORM),
    Reason.RUNTIME_UNREACHABLE: ReasonInfo("A runtime pod does not answer.", "retry", _PLATFORM),
    Reason.RUNTIME_TOO_OLD: ReasonInfo("The pod's runtime predates the entry.", "retry", _SERVICE),
    Reason.MALFORMED_SHARD: ReasonInfo(
        "A part of the desired set is missing or unreadable; its last good content stays.",
        "retry",
        _PLATFORM,
    ),
    Reason.INTERNAL_ERROR: ReasonInfo("A fault of Graft's own.", "retry", _PLATFORM),
}
"""Every reason, documented. A test holds this table and the enum equal."""
