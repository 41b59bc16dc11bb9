"""The port between the front doors and whatever runs the model.

The pod implements it over its engine; tests replay tokens through it. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from graft_protocol.status import RuntimeStatus
from graft_runtime.ipc.messages import GuestTemplate, Sampling, TokenScore

BASE_ALIASES: Final = frozenset({None, "", "tgi", "dummy"})
"""What clients send as a model's name when they mean the base model."""


@dataclass(frozen=True)
class Target:
    """What a model name resolved to, fixed for the request's whole life."""

    served_name: str
    """Echoed in responses."""
    revision: str | None
    """None is the base model."""
    route_key: str = ""
    """What its revision was chosen by."""
    template: GuestTemplate | None = None
    """What renders its chats; None is the base model's."""


@dataclass(frozen=True)
class Terms:
    """On which terms one request is served, beside what is generated."""

    priority: int = 0
    """Class: 0 is everybody's; requests of a higher number yield to all of lower ones."""
    cache_salt: str = ""
    """Its prompt's cache is shared only with requests that have the same one."""
    timeout_seconds: float | None = None
    """It ends with an error when it has taken longer, in whatever phase it is; None leaves that to
    the server."""

    def over(self, others: Terms) -> Terms:
        """Return these terms, and where they say nothing those of others."""
        return Terms(
            self.priority or others.priority,
            self.cache_salt or others.cache_salt,
            self.timeout_seconds or others.timeout_seconds,
        )


DEFAULT_TERMS: Final = Terms()


@dataclass(frozen=True)
class ServedModel:
    """One line of the list of models."""

    name: str
    root: str
    parent: str | None
    created: int
    """Seconds since the epoch."""
    max_model_len: int | None
    revision: str | None


@dataclass(frozen=True)
class TokenChunk:
    """One output of the engine for one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: Literal["stop", "length", "abort", "error"] | None
    num_cached: int = 0
    """Prompt tokens that did not have to be computed; the same in every chunk of a request."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Per token the likeliest ones there with their log probabilities, if asked for."""
    embedding: bytes | None = None
    """The prompt's hidden states, pooled, if asked for: float32, little-endian."""
    prompt_scores: tuple[TokenScore, ...] | None = None
    """Of the prompt's second token and those after it, if asked for; in the first chunk."""
    num_preemptions: int = 0
    """How often the request has had to give way so far."""
    queue_seconds: float | None = None
    """How long the request waited before anything of it was computed."""


@dataclass(frozen=True)
class Health:
    """What the probes ask."""

    live: bool
    ready: bool
    started: bool
    detail: str


@dataclass(frozen=True)
class Capacity:
    """What a pod was built for, for clients who ask before they send."""

    max_requests: int
    """Requests that run or wait at the same time; one more is refused."""
    kv_tokens: int
    """Tokens of all requests together that find room in the cache."""
    dtype: str
    """Of weights and cache, as configurations name it."""
    device: str
    """Its kind: ``cpu`` or ``cuda``."""
    model_digest: str
    """Of the base model's files."""


class Backend(Protocol):
    """Models to ask and what runs them."""

    def models(self) -> tuple[ServedModel, ...]:
        """Return what can be asked for now: the base model first, then adapters."""
        ...

    def resolve(self, model: str | None, route_key: str | None = None) -> Target:
        """Return what a name means now. `BASE_ALIASES` mean the base model.

        Args:
            model: The name.
            route_key: Requests of one key get the same version while weights do not change.

        Raises:
            ModelNotFoundError: Nobody serves that name.
            AdapterUnavailableError: Known, but not usable yet.
        """
        ...

    def check_admission(self, prompt_chars: int) -> None:
        """Refuse early, before work is put into a request.

        Args:
            prompt_chars: Length of its text, or the number of its tokens if it came as tokens.

        Raises:
            OverloadedError: The queue is full.
            DrainingError: The pod is going down.
        """
        ...

    def generate(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        target: Target,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[TokenChunk, None]:
        """Run one request; the last chunk carries the reason for the end.

        Closing the generator aborts the request at once and frees what it holds. Nothing is
        submitted before the first chunk is asked for.

        Raises:
            RequestError: A subclass says why there is no (further) output.
        """
        ...

    def status(self) -> RuntimeStatus:
        """Return the pod's report."""
        ...

    def capacity(self) -> Capacity | None:
        """Return what the pod was built for; None while it has no engine."""
        ...

    def health(self) -> Health:
        """Return what the probes answer; must not wait for anything."""
        ...

    def tokenizer_dir(self) -> Path | None:
        """Return the base model's folder; None until it is on disk."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output in tokens; 0 until known, and known from then on.

        Requests are refused while it is 0; while an engine restarts, `generate` holds them.
        """
        ...
