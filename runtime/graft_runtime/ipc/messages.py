"""What the server, engine and loader processes say to each other.

Plain msgspec structs, tagged by class name; a change here is local to one pod, since all its
processes come from one build.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Pooling = Literal["last", "mean"]
"""Which of a prompt's hidden states are returned: the last token's, or the mean of all."""


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """How an output is marked; names and defaults are those of transformers' configuration."""

    greenlist_ratio: float = 0.25
    """Part of the vocabulary that is preferred, between 0 and 1."""
    bias: float = 2.0
    """Added to the logits of what is preferred."""
    hashing_key: int = 15485863
    """Who knows it can detect the mark."""
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: int = 1
    """Tokens from which a list is derived."""


class ThoughtLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens an output may think, and how its thought is told and ended."""

    max_tokens: int
    """Between the two marks."""
    opening: str
    closing: str
    closing_ids: tuple[int, ...]
    """What is written when the limit is reached: the closing mark."""
    is_open: bool
    """Whether the prompt leaves off amid the thought. Else the output must begin with the mark."""


class ProcessorCall(msgspec.Struct, frozen=True):
    """A logits processor that a request uses, and how."""

    name: str
    """Of its entry point."""
    arguments: dict[str, Any] = {}


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How one request's tokens are chosen. Validated by the surface that built it."""

    max_tokens: int
    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """0 means off."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Least probability relative to the best token's; 0 means off."""
    typical_p: float = 1.0
    """Locally typical mass; 1 means off."""
    repetition_penalty: float = 1.0
    """Of tokens in prompt and output; 1 means off."""
    presence_penalty: float = 0.0
    """Of tokens in the output; 0 means off."""
    frequency_penalty: float = 0.0
    """Of tokens in the output, for each occurrence; 0 means off."""
    logit_bias: dict[int, float] = {}
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that never come to stand in the output as a whole."""
    allowed_token_ids: tuple[int, ...] | None = None
    """None allows all."""
    min_tokens: int = 0
    """Nothing of ``stop_token_ids`` and the model's end tokens comes before so many tokens."""
    seed: int = 0
    """Unsigned 64 bit. The server draws one where the client gave none."""
    sample_index: int = 0
    """Which of several answers with one seed this is."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the output beside the model's own end tokens."""
    ignore_eos: bool = False
    logprobs: bool = False
    """Whether each token's log probability is returned."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are returned with each token; needs ``logprobs``."""
    logprob_token_ids: tuple[int, ...] = ()
    """Told instead of the likeliest ones, by the model's own distribution; needs ``logprobs``."""
    processed_logprobs: bool = False
    """Whether these are of the distribution that was drawn from, not of the model's own."""
    prompt_logprobs: int | None = None
    """As ``top_logprobs`` for each token of the prompt but the first; None returns nothing."""
    pooling: Pooling | None = None
    """Return the prompt's hidden states, pooled, and end without a token."""
    grammar: str | None = None
    """Text of the grammar that the output follows; checked by `graft_runtime.sampling`."""
    thought_limit: ThoughtLimit | None = None
    watermark: Watermark | None = None
    processors: tuple[ProcessorCall, ...] = ()

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far have a say in the next one's probability."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


# server -> engine


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request to run. Its prompt is already tokens."""

    request_id: str
    token_ids: list[int]
    sampling: Sampling
    adapter: str | None = None
    """Revision, or None for the base model."""
    tenant: str = ""
    """Who shares the engine's time with whom."""
    priority: int = 0
    """Class of the request: a lower number goes first."""
    cache_salt: str = ""
    """Keys and values are shared only between requests of one tenant that have the same one."""
    tenant_weight: float = 1.0
    """The tenant's share relative to others."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request; nothing more is sent for it. Unknown ids are ignored."""

    request_id: str


class SlotPart(msgspec.Struct, frozen=True):
    """One slot file of several that are added up."""

    path: str
    weight: float


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Make a revision known to the engine. ``path`` is a slot file of `graft_runtime.adapters`."""

    revision: str
    path: str
    rank: int
    """The sum of the pages' ranks if it is `merged`."""
    prefetch: bool = True
    pinned: bool = False
    merged: tuple[SlotPart, ...] = ()
    """What is added up, instead of ``path``."""


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
    dtype: str = ""
    """Of weights and cache, as configurations name it; the device is ``cpu`` or ``cuda``."""
    device: str = ""


class EngineRefused(msgspec.Struct, frozen=True, tag=True):
    """The base model or the settings cannot work; starting again would not help."""

    reason: str
    message: str


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """What the model thought of one token of the prompt."""

    logprob: float
    rank: int
    """1 for the likeliest token."""
    top: list[tuple[int, float]]
    """The likeliest tokens there, the best first."""


class TokenOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step gave one request: 0..n tokens, and the end if this was it."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Only with ``finish_reason`` "error"."""
    is_impossible: bool = False
    """Whether the error lies in what was asked, so that asking again is pointless."""
    num_cached: int = 0
    """Prompt tokens that did not have to be computed; in a request's first output."""
    top_logprobs: list[list[tuple[int, float]]] | None = None
    """Per token the likeliest ones there, the best first, none that is out of the question; or
    those that the request names, in its order."""
    prompt_scores: list[TokenScore] | None = None
    """Of the prompt's second token and all after it; in a request's first output."""
    embedding: bytes | None = None
    """The pooled hidden states, float32, little-endian, not normalised."""
    num_preemptions: int = 0
    """How often it has had to give way so far."""


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges and counters since start, as of this step."""

    running: int = 0
    waiting: int = 0
    deferred: int = 0
    """Those of the waiting ones whose adapter is not on the device yet."""
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    device_pages_free: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0


class StepFacts(msgspec.Struct, frozen=True, array_like=True):
    """What one step computed, and how long that took."""

    prompt_tokens: int
    output_tokens: int
    failed: bool = False
    """Whether its rows had to be run one by one instead."""
    seconds: float = 0.0
    """From the end of the step before to its own."""
    host_seconds: float = 0.0
    """Processor time of the engine's own loop therein."""


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """All outputs of one step in one message. Also sent empty once a second, as a heartbeat."""

    outputs: list[TokenOutput]
    stats: EngineStats
    host_seconds: float | None = None
    """Processor time that the step before this one took of the loop that schedules steps, prepares
    their inputs, and reads and writes messages; what the device does is not in it."""
    started: list[str] = []
    """Requests that this step computes something of for the first time."""
    steps: list[StepFacts] = []
    """The steps that have ended since the last message."""
    more_ids: list[str] = []
    """Requests that got one token after others, and of which there is nothing else to say. They are
    not among the outputs: a list of names and one of tokens is all that most steps have to say."""
    more_tokens: list[int] = []
    """What each of them got."""


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
    chat_template: bool = False
    """Whether its own chat template belongs to it."""


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
    origin: str | None = None
    """Where it was read from just now, with the commit that its revision meant."""


class ModelRefused(msgspec.Struct, frozen=True, tag=True):
    """The base model cannot be used."""

    reason: str
    message: str


class GuestTemplate(msgspec.Struct, frozen=True):
    """An adapter's own chat template, found to be usable."""

    source: str
    reads: tuple[str, ...]
    """Names that it reads and does not set."""


class AdapterPrepared(msgspec.Struct, frozen=True, tag=True):
    """A revision's slot file lies in ``path``, ready to be copied to the device."""

    revision: str
    digest: str
    bytes: int
    rank: int
    target_modules: tuple[str, ...]
    path: str
    origin: str | None = None
    """Where it was read from just now, with the commit that its revision meant."""
    template: GuestTemplate | None = None
    warning: str = ""
    """What its owner may want to look at, though it serves."""


class AdapterRefused(msgspec.Struct, frozen=True, tag=True):
    """A revision cannot be used; ``reason`` is a `Reason`. Who asked decides on retries."""

    revision: str
    reason: str
    message: str
    digest: str | None = None


FromLoader = (
    LoaderReady | LoaderProgress | ModelPrepared | ModelRefused | AdapterPrepared | AdapterRefused
)
