"""A backend that replays tokens: the front doors' tests decide what the engine says and when."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graft_protocol.reasons import EngineState
from graft_protocol.status import ModelReport, RuntimeStatus
from graft_runtime.errors import ModelNotFoundError, RequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.server.backend import (
    BASE_ALIASES,
    DEFAULT_TERMS,
    Capacity,
    Health,
    ServedModel,
    Target,
    Terms,
    TokenChunk,
)

BASE = "base-model"
ADAPTER = "shouty"
REVISION = "default/shouty@0123456789ab"

HEALTHY = Health(live=True, ready=True, started=True, detail="serving")
CAPACITY = Capacity(320, 16_384, "bfloat16", "cpu", "sha256:00")
REPORT = RuntimeStatus(
    version="0.1.0",
    pod="pod-0",
    state=EngineState.READY,
    model=ModelReport(served_name=BASE, uri="file:///model"),
)


@dataclass(frozen=True)
class Submitted:
    """One call of `FakeBackend.generate`."""

    request_id: str
    token_ids: list[int]
    sampling: Sampling
    target: Target
    terms: Terms


@dataclass
class FakeBackend:
    """Replays `script` for every request. `gate_at` holds requests before that chunk."""

    folder: Path | None
    script: Sequence[TokenChunk] = ()
    gate_at: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    """Raised where the script ends without a finish reason."""
    refusal: RequestError | None = None
    """Raised by `check_admission`."""
    limit: int = 256
    condition: Health = HEALTHY
    report: RuntimeStatus = REPORT
    built_for: Capacity | None = CAPACITY
    submitted: list[Submitted] = field(default_factory=list)
    route_keys: list[str | None] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    reached_gate: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def max_model_len(self) -> int:
        return self.limit

    def models(self) -> tuple[ServedModel, ...]:
        return (
            ServedModel(BASE, "file:///model", None, 1700000000, self.limit, None),
            ServedModel(ADAPTER, "s3://adapters/shouty", BASE, 1700000001, None, REVISION),
        )

    def resolve(self, model: str | None, route_key: str | None = None) -> Target:
        self.route_keys.append(route_key)
        if model in BASE_ALIASES or model == BASE:
            return Target(BASE, None)
        if model == ADAPTER:
            return Target(ADAPTER, REVISION)
        raise ModelNotFoundError("The model does not exist.", param="model")

    def check_admission(self, prompt_chars: int) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        target: Target,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[TokenChunk, None]:
        self.submitted.append(Submitted(request_id, token_ids, sampling, target, terms))
        self.running.add(request_id)
        try:
            for index, chunk in enumerate(self.script):
                if index == self.gate_at:
                    self.reached_gate.set()
                    await self.gate.wait()
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.running.discard(request_id)
            self.closed.set()

    def status(self) -> RuntimeStatus:
        return self.report

    def capacity(self) -> Capacity | None:
        return self.built_for

    def health(self) -> Health:
        return self.condition

    def tokenizer_dir(self) -> Path | None:
        return self.folder


def chunk(*ids: int, finish: str | None = None, logprob: float = -0.5) -> TokenChunk:
    """Return a chunk whose tokens all have one log probability."""
    return TokenChunk(ids, (logprob,) * len(ids), finish)  # type: ignore[arg-type]  # a literal


def script_of(ids: Sequence[int], finish: str) -> list[TokenChunk]:
    """Return one chunk per token, the last with the reason for the end."""
    last = len(ids) - 1
    return [chunk(id, finish=finish if i == last else None) for i, id in enumerate(ids)]
