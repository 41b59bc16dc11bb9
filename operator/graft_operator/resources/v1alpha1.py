"""The specs of InferenceService and LoraAdapter, `serving.graft.dev/v1alpha1`.

The source of the CRDs and of their reference: a docstring here is a description there. A field is
here only when it works. Statuses are in `status`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE
from graft_operator.resources.canary import AdapterRollout
from graft_operator.resources.container import RuntimeSpec
from graft_operator.resources.exposure import (
    DisruptionBudgetSpec,
    InferencePoolSpec,
    MonitoringSpec,
    NetworkPolicySpec,
)
from graft_operator.resources.fields import (
    Bytes,
    Count,
    Moment,
    Namespace,
    ObjectName,
    PublicKey,
    Seconds,
    SecondsOrZero,
    Signature,
)
from graft_operator.resources.meta import Closed, ObjectKey, ObjectMeta
from graft_operator.resources.placement import ResourcesSpec, SchedulingSpec
from graft_operator.resources.rollout import RolloutSpec
from graft_operator.resources.scaling import AutoscalingSpec
from graft_operator.resources.status import AdapterStatus, ServiceStatus
from graft_operator.resources.tenancy import (
    AccessSpec,
    AllowedNamespaces,
    DeclaredSpec,
    TenantSpec,
)
from graft_protocol.desired import Tier
from graft_protocol.digest import DIGEST_PATTERN
from graft_protocol.source_rules import claim_of

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$"
URI_PATTERN = (
    r"^((s3|gs|az|https|pvc|file)://[^\s@?#]+"
    r"|hf://[^\s@?#/]+/[^\s@?#/]+(@[^\s@?#/]+)?(/[^\s@?#]+)?)$"
)
URI_PREFIX_PATTERN = r"^(s3|gs|az|hf|https|pvc|file)://[^\s?#]*$"
ENDPOINT_PATTERN = r"^https?://[^\s/@?#]+$"

UNSIGNED_BY_API = "allowRuntimeLoading goes around trustedKeys: set one of the two"

NO_DOT_DOT = {
    "x-kubernetes-validations": [
        {
            "rule": "!self.split('/').exists(part, part == '..')",
            "message": "must not contain '..'",
        }
    ]
}

Uri = Annotated[str, Field(pattern=URI_PATTERN, max_length=1024, json_schema_extra=NO_DOT_DOT)]
UriPrefix = Annotated[
    str, Field(pattern=URI_PREFIX_PATTERN, max_length=1024, json_schema_extra=NO_DOT_DOT)
]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
ServedName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=128)]
Endpoint = Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=256)]


class SecretRef(Closed):
    """A Secret in the object's own namespace."""

    name: ObjectName
    """Name of the Secret. Keys: `accessKeyId`, `secretAccessKey`, `sessionToken`,
    `serviceAccountKey`, `accountKey`, `sasToken`, `tenantId`, `clientId`, `clientSecret`, `token`,
    `region`, `endpoint`, `addressingStyle`, `caBundle`, or the names the providers' tools use."""


class ModelSpec(Closed):
    """The base model."""

    uri: Uri
    """Where the checkpoint is, in Hugging Face's layout with safetensors weights:
    `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`,
    `hf://org/repo@revision/folder`, `https://host/path/manifest`, `pvc://claim/folder` or
    `file:///folder`."""
    digest: Digest | None = None
    """Content identity of the checkpoint. When set, other bytes are refused."""
    served_name: ModelName | None = None
    """The name requests use for the base model. Defaults to the service's name."""
    credentials_secret_ref: SecretRef | None = None
    """Opens the source. Without it the pod's own identity is used."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and activations; `auto` takes the checkpoint's own."""
    max_model_len: Count | None = None
    """Longest prompt plus output in tokens. Defaults to the model's own limit."""


class EngineSpec(Closed):
    """How the engine batches and how much memory it takes.

    What is left out keeps the runtime's own default.
    """

    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the model runs; `auto` prefers a GPU."""
    block_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens per KV block."""
    kv_blocks: Count | None = None
    """Size of the KV pool in blocks; wins over `kvBytes`."""
    kv_bytes: Bytes | None = None
    """Memory for the KV pool, bytes."""
    max_batch_tokens: Count | None = None
    """Tokens computed in one step, prompts and outputs together."""
    max_running: Count | None = None
    """Requests decoding at the same time."""
    max_chunk_tokens: Count | None = None
    """Prompt tokens in a step that also decodes, of all prompts together."""
    max_waiting: Count | None = None
    """Requests queued before new ones are refused with 429."""
    max_waiting_tokens: Count | None = None
    """Prompt tokens queued before new requests are refused with 429."""
    threads: Count | None = None
    """CPU threads of the forward pass. Defaults to all cores."""


class AdaptersSpec(Closed):
    """What adapters are admitted and how they are handled.

    What is left out keeps the runtime's own default.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.trustedKeys) || size(self.trustedKeys) == 0 || "
                    "!has(self.allowRuntimeLoading) || !self.allowRuntimeLoading",
                    "message": UNSIGNED_BY_API,
                }
            ]
        }
    )

    max_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Largest rank of any module of an adapter."""
    device_pages: Count | None = None
    """Rank-16 pages on the device, shared by all resident adapters."""
    max_bytes: Bytes | None = None
    """Largest adapter that is fetched, bytes."""
    load_concurrency: Annotated[int, Field(ge=1, le=64)] | None = None
    """Adapters a pod fetches and prepares at the same time."""
    sync_timeout_seconds: Seconds | None = None
    """How long a pod's readiness waits for adapters it requires."""
    drain_timeout_seconds: Seconds | None = None
    """How long requests on a removed revision may go on."""
    hold_timeout_seconds: Seconds | None = None
    """How long a request waits for its adapter to become resident."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """From where adapters may attach."""
    tenants: Annotated[tuple[TenantSpec, ...], Field(max_length=64)] = ()
    """What the namespaces of adapters are allowed."""
    allowed_endpoints: Annotated[tuple[Endpoint, ...], Field(max_length=64)] = ()
    """Object stores and hubs, `scheme://host[:port]`, that credentials may name, and hosts of
    `https` URIs, for the model and for adapters. A credential without an endpoint needs no
    entry."""
    allowed_uris: Annotated[tuple[UriPrefix, ...], Field(max_length=64)] = ()
    """Where adapters may come from, as prefixes of their URIs that end at a whole part:
    `s3://bucket/team-a` admits what lies below it. Empty admits every URI."""
    allow_runtime_loading: bool = False
    """Let clients load, unload and merge adapters over HTTP, for as long as a pod lives and from
    `allowedUris` alone: without these, from nowhere."""
    max_runtime_adapters: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Adapters that a pod holds so, and again as many merged ones."""
    claims: Annotated[tuple[ObjectName, ...], Field(max_length=16)] = ()
    """PersistentVolumeClaims of the service's namespace, mounted read-only in every pod, that
    adapters may name as `pvc://claim/folder`. The model's own needs no entry."""
    trusted_keys: Annotated[tuple[PublicKey, ...], Field(max_length=16)] = ()
    """Public keys in PEM (`-----BEGIN PUBLIC KEY-----`): ECDSA on P-256, P-384 or P-521, or RSA of
    at least 2048 bits. With any, an adapter is taken only with a digest and a signature of it by
    one of them. Empty asks for no signatures. Not together with `allowRuntimeLoading`."""

    @model_validator(mode="after")
    def _has_no_way_around_signatures(self) -> AdaptersSpec:
        if self.trusted_keys and self.allow_runtime_loading:
            raise ValueError(UNSIGNED_BY_API)
        return self


class ServerSpec(Closed):
    """The front doors. What is left out keeps the runtime's default."""

    drain_timeout_seconds: Seconds | None = None
    """How long running requests may go on when a pod stops."""
    max_body_bytes: Bytes | None = None
    """Largest request body, bytes."""
    request_timeout_seconds: Seconds | None = None
    """Longest a request may take."""
    watermark_greenlist_ratio: Annotated[float, Field(ge=0.01, le=0.99)] | None = None
    """Part of the vocabulary that a watermark prefers, where a request does not say."""
    watermark_bias: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Added to the logits of what a watermark prefers, where a request does not say."""
    watermark_hashing_key: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Key of watermarks, where a request brings none; whoever knows it can detect them."""


class CacheSpec(Closed):
    """The pod's disk cache for models and adapters."""

    max_bytes: Bytes = 10 * 2**30
    """Size of the cache, bytes; also the limit of its volume."""


class InferenceServiceSpec(Closed):
    """A base model and the pods that serve it."""

    model: ModelSpec
    """The base model."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of pods. `kubectl scale` and autoscalers change it through the scale subresource."""
    engine: EngineSpec = EngineSpec()
    """Batching and memory."""
    adapters: AdaptersSpec = AdaptersSpec()
    """What adapters are admitted and how they are handled."""
    runtime: RuntimeSpec = RuntimeSpec()
    """The container."""
    server: ServerSpec = ServerSpec()
    """The front doors."""
    cache: CacheSpec = CacheSpec()
    """The disk cache."""
    resources: ResourcesSpec = ResourcesSpec()
    """What a pod reserves and may use: CPU, memory, GPUs."""
    scheduling: SchedulingSpec = SchedulingSpec()
    """Where pods may run."""
    rollout: RolloutSpec = RolloutSpec()
    """How pods are replaced."""
    autoscaling: AutoscalingSpec | None = None
    """Have the number of pods follow the load; `replicas` is then the number to begin with."""
    disruption_budget: DisruptionBudgetSpec = DisruptionBudgetSpec()
    """How many pods a node's drain may take at a time."""
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    """Who may open connections to the pods."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """How Prometheus finds the pods."""
    inference_pool: InferencePoolSpec | None = None
    """Offer the pods to a Gateway as an InferencePool."""


class ServiceRef(Closed):
    """The InferenceService an adapter belongs to."""

    name: ObjectName
    """Name of the InferenceService."""
    namespace: Namespace | None = None
    """Its namespace. Defaults to the adapter's own; another one must be allowed by the service."""


class AdapterSource(Closed):
    """Where an adapter's files are."""

    uri: Uri
    """A folder with `adapter_config.json` and safetensors files, in the same forms as the model's
    `uri`."""
    digest: Digest | None = None
    """Content identity, as `graft adapter publish` prints it. Without it the first pod that reads
    the source decides, and the digest it found is recorded and kept."""
    signature: Signature | None = None
    """Of the digest, in base64: ECDSA (DER) or RSA (PKCS #1 v1.5) with SHA-256 over the manifest's
    text, as `graft adapter publish --sign-key` prints it. Asked for by a service with
    `adapters.trustedKeys`."""
    credentials_secret_ref: SecretRef | None = None
    """Opens the source. Without it the pod's own identity is used."""


class LoraAdapterSpec(Closed):
    """An adapter that a service offers beside its base model."""

    inference_service_ref: Annotated[
        ServiceRef,
        Field(
            json_schema_extra={
                "x-kubernetes-validations": [
                    {"rule": "self == oldSelf", "message": "is immutable; create a new LoraAdapter"}
                ]
            }
        ),
    ]
    """The service. Cannot be changed."""
    source: AdapterSource
    """Where the files are."""
    chat_template: Literal["Model", "Adapter"] = "Model"
    """Whose chat template renders messages: the base model's, or the adapter's own
    `chat_template.jinja`, which then belongs to its content and so to its digest."""
    served_name: ServedName | None = None
    """The name requests use. Defaults to the object's name. `<namespace>/<name>` always works."""
    aliases: Annotated[tuple[ServedName, ...], Field(max_length=16)] = ()
    """Further names that mean this adapter."""
    tier: Tier = Tier.DEVICE
    """How far ahead of the first request the weights are brought."""
    pinned: bool = False
    """Keep it where `tier` says; other adapters make room first."""
    required_for_readiness: bool = False
    """Hold a pod's readiness until this adapter is loaded (bounded by `syncTimeoutSeconds`)."""
    suspend: bool = False
    """Take it out of service but remember its revision."""
    expires_at: Moment | None = None
    """When it is taken out of service, in UTC: `2030-12-31T23:59:59Z`. The object stays."""
    access: AccessSpec | None = None
    """Who may use it. Left out: everybody who reaches the service."""
    rollout: AdapterRollout = AdapterRollout()
    """How a new version takes over."""
    drain_timeout_seconds: SecondsOrZero | None = None
    """How long running requests may go on once a version of it is taken out, by an update as well
    as by its deletion; 0 ends them at once. Defaults to the service's
    `adapters.drainTimeoutSeconds`."""
    declared: DeclaredSpec | None = None
    """What its files are said to be; refused early if that is more than is allowed."""


class InferenceService(Closed):
    """One base model, served by pods that take any number of LoRA adapters while running."""

    api_version: str
    kind: Literal["InferenceService"]
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: ServiceStatus = ServiceStatus()

    @property
    def key(self) -> ObjectKey:
        """The object's key."""
        return ObjectKey(KIND_SERVICE, self.metadata.namespace, self.metadata.name)

    @property
    def claims(self) -> tuple[str, ...]:
        """The volume claims that its pods mount: the adapters' and the model's."""
        of_model = claim_of(self.spec.model.uri)
        return tuple(sorted({*self.spec.adapters.claims, *filter(None, (of_model,))}))

    @property
    def served_name(self) -> str:
        """The name requests use for the base model."""
        return self.spec.model.served_name or self.metadata.name


class LoraAdapter(Closed):
    """One LoRA adapter of an InferenceService, loaded and replaced without a restart."""

    api_version: str
    kind: Literal["LoraAdapter"]
    metadata: ObjectMeta
    spec: LoraAdapterSpec
    status: AdapterStatus = AdapterStatus()

    @property
    def key(self) -> ObjectKey:
        """The object's key."""
        return ObjectKey(KIND_ADAPTER, self.metadata.namespace, self.metadata.name)

    @property
    def service_key(self) -> ObjectKey:
        """The key of the service it asks for, existing or not."""
        ref = self.spec.inference_service_ref
        return ObjectKey(KIND_SERVICE, ref.namespace or self.metadata.namespace, ref.name)

    @property
    def qualified_name(self) -> str:
        """The name under which it is served in every case."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
