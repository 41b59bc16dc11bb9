"""The runtime's configuration: what ``/etc/graft/runtime/runtime.yaml`` holds.

Written by the operator into an immutable ConfigMap whose name carries the content's hash; a change
is a rollout. Read once at start and never changed afterwards.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graft_protocol.base import Message

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class ServiceIdentity(Message):
    """Which InferenceService this pod belongs to."""

    namespace: str
    name: str


class ModelSettings(Message):
    """The base model."""

    served_name: str
    uri: str
    """A folder with a Hugging Face style checkpoint, in any form of `graft_runtime.sources.uri`."""
    digest: str | None = None
    credential: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` takes the checkpoint's own dtype."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus output in tokens; None takes the model's own limit."""


class EngineSettings(Message):
    """How the engine batches and how much memory it takes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    block_size: PositiveInt = 16
    """Tokens per KV block."""
    kv_blocks: PositiveInt | None = None
    """Size of the KV pool in blocks; None derives it from `kv_bytes`."""
    kv_bytes: PositiveInt | None = None
    """Memory for the KV pool, bytes; None takes on a GPU what is free beside the heaviest step, on
    a CPU 256 MiB or as much of it as the memory limit leaves."""
    max_batch_tokens: PositiveInt = 512
    """Tokens computed in one step, prompts and outputs together."""
    max_running: PositiveInt = 64
    """Requests decoding at the same time."""
    max_chunk_tokens: PositiveInt = 256
    """Prompt tokens in a step that also decodes, of all prompts together; bounds the inter-token
    time."""
    max_waiting: PositiveInt = 256
    """Requests queued before new ones are refused with 429."""
    max_waiting_tokens: PositiveInt = 262_144
    """Prompt tokens queued before new requests are refused with 429."""
    threads: PositiveInt | None = None
    """CPU threads for the forward pass; None takes all cores."""


class AdapterSettings(Message):
    """Limits and places for adapters."""

    max_rank: PositiveInt = 64
    device_pages: PositiveInt = 64
    """Rank-16 pages on the device, shared by all resident adapters."""
    max_bytes: PositiveInt = 2**30
    """Largest adapter that is fetched, bytes."""
    load_concurrency: PositiveInt = 4
    sync_timeout_seconds: Seconds = 120.0
    """How long readiness waits for required adapters."""
    drain_timeout_seconds: Seconds = 60.0
    """How long a removed revision's running requests may go on."""
    hold_timeout_seconds: Seconds = 30.0
    """How long a request waits for its adapter to become resident."""
    allowed_endpoints: tuple[str, ...] = ()
    """Endpoints that credentials and ``https`` URIs may name."""
    allowed_uris: tuple[str, ...] = ()
    """Prefixes of adapters' URIs; none admits all."""
    allow_runtime_loading: bool = False
    """Whether clients may load adapters over HTTP, from `allowed_uris` alone."""
    max_runtime_adapters: PositiveInt = 64
    """Adapters loaded so, and again as many merged ones."""


class CacheSettings(Message):
    """The disk cache for models and adapters."""

    max_bytes: PositiveInt = 10 * 2**30


class ServerSettings(Message):
    """The front doors."""

    host: str = "0.0.0.0"  # noqa: S104 - a pod's own network namespace
    port: int = 8000
    """HTTP port for clients, metrics and probes. 0 picks a free one."""
    grpc_port: int = 8001
    """gRPC port for clients. 0 picks a free one."""
    internal_port: int = 9000
    """Port of status and administration, guarded by a token."""
    drain_timeout_seconds: Seconds = 45.0
    """How long running requests may go on after SIGTERM."""
    max_body_bytes: PositiveInt = 2 * 2**20
    request_timeout_seconds: Seconds = 600.0
    watermark_greenlist_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Part of the vocabulary that a watermark prefers, where a request does not say."""
    watermark_bias: Annotated[float, Field(ge=-100, le=100)] = 2.0
    """Added to the logits of what is preferred, likewise."""
    watermark_hashing_key: Annotated[int, Field(ge=1, lt=2**63)] = 15485863
    """Who knows it can detect the mark; likewise."""


class RuntimeConfig(Message):
    """Everything a runtime pod is told before it starts."""

    service: ServiceIdentity
    model: ModelSettings
    engine: EngineSettings = Field(default_factory=EngineSettings)
    adapters: AdapterSettings = Field(default_factory=AdapterSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)
