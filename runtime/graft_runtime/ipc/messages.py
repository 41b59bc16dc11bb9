"""What the server, engine and loader processes say to each other.

Plain msgspec structs, tagged by class name; a change here is local to one pod, since all its
processes come from one build.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How one request's tokens are chosen. Validated by the surface that built it."""

    max_tokens: int
    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """0 means off."""
    top_p: float = 1.0
    seed: int = 0
    """Unsigned 64 bit. The server draws one where the client gave none."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the output beside the model's own end tokens."""
    ignore_eos: bool = False
    logprobs: bool = False
    """Whether each token's log probability is returned."""


# server -> engine


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request to run. Its prompt is already tokens."""

    request_id: str
    token_ids: list[int]
    sampling: Sampling
    adapter: str | None = None
    """Revision, or None for the base model."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request; nothing more is sent for it. Unknown ids are ignored."""

    request_id: str


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Make a revision known to the engine. ``path`` is a slot file of `graft_runtime.adapters`."""

    revision: str
    path: str
    rank: int
    prefetch: bool = True
    pinned: bool = False


class UnregisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Take no new requests for a revision, and free its slot when the running ones are done."""

    revision: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit with status 0."""


ToEngine = Submit | Abort | RegisterAdapter | UnregisterAdapter | Shutdown

# engine -> server

FinishReason = Literal["stop", "length", "abort", "error"]


class EngineProgress(msgspec.Struct, frozen=True, tag=True):
    """How far the engine's start has come."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    """The base model is loaded and warm."""

    max_model_len: int
    vocab_size: int
    block_size: int
    kv_blocks: int
    device_pages: int


class EngineRefused(msgspec.Struct, frozen=True, tag=True):
    """The base model or the settings cannot work; starting again would not help."""

    reason: str
    message: str


class TokenOutput(msgspec.Struct, frozen=True):
    """What one step gave one request: 0..n tokens, and the end if this was it."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Only with ``finish_reason`` "error"."""
    num_cached: int = 0
    """Prompt tokens that did not have to be computed."""


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges and counters since start, as of this step."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    device_pages_free: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """All outputs of one step in one message. Also sent empty once a second, as a heartbeat."""

    outputs: list[TokenOutput]
    stats: EngineStats


ResidencyState = Literal["registered", "loading", "resident", "failed", "removed"]


class AdapterResidency(msgspec.Struct, frozen=True, tag=True):
    """A revision's place on the device changed."""

    revision: str
    state: ResidencyState
    reason: str = ""
    message: str = ""


FromEngine = EngineProgress | EngineReady | EngineRefused | StepOutputs | AdapterResidency

# server -> loader


class PrepareModel(msgspec.Struct, frozen=True, tag=True):
    """Bring the base model's files to the disk cache."""

    uri: str
    digest: str | None = None
    credential: str | None = None


class PrepareAdapter(msgspec.Struct, frozen=True, tag=True):
    """Fetch, verify, validate and convert one revision. Repeating it is harmless.

    Without a digest the loader finds it: the answer carries it.
    """

    revision: str
    uri: str
    digest: str | None = None
    credential: str | None = None


class ReleaseAdapter(msgspec.Struct, frozen=True, tag=True):
    """The revision is no longer wanted: stop fetching it, and let its files be evicted."""

    revision: str


ToLoader = PrepareModel | PrepareAdapter | ReleaseAdapter | Shutdown

# loader -> server


class LoaderReady(msgspec.Struct, frozen=True, tag=True):
    """The loader takes work."""


class LoaderProgress(msgspec.Struct, frozen=True, tag=True):
    """Bytes fetched so far. ``revision`` is None for the base model."""

    revision: str | None
    done_bytes: int
    total_bytes: int


class ModelPrepared(msgspec.Struct, frozen=True, tag=True):
    """The base model lies in ``path``."""

    path: str
    digest: str
    bytes: int


class ModelRefused(msgspec.Struct, frozen=True, tag=True):
    """The base model cannot be used."""

    reason: str
    message: str


class AdapterPrepared(msgspec.Struct, frozen=True, tag=True):
    """A revision's slot file lies in ``path``, ready to be copied to the device."""

    revision: str
    digest: str
    bytes: int
    rank: int
    target_modules: tuple[str, ...]
    path: str


class AdapterRefused(msgspec.Struct, frozen=True, tag=True):
    """A revision cannot be used; ``reason`` is a `Reason`. Who asked decides on retries."""

    revision: str
    reason: str
    message: str
    digest: str | None = None


FromLoader = (
    LoaderReady | LoaderProgress | ModelPrepared | ModelRefused | AdapterPrepared | AdapterRefused
)
