"""What a pod knows of itself, shared by the supervising and the answering side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_protocol.reasons import EngineState, Reason
from graft_protocol.status import ProgressReport, ShardReport
from graft_runtime.ipc.messages import EngineReady, EngineStats, ModelPrepared


@dataclass
class PodState:
    """Facts, no decisions. Whoever changes one calls `notify`."""

    model: ModelPrepared | None = None
    """The base model's files on disk."""
    engine: EngineReady | None = None
    """What the running engine said of itself; None while there is none."""
    max_model_len: int = 0
    """What the last engine said of the longest sequence; the next one will say the same."""
    has_text: bool = False
    """Whether the tokenizer is loaded."""
    started: bool = False
    """Whether the base model has been up once."""
    draining: bool = False
    failure: tuple[Reason, str] | None = None
    """Why the pod cannot serve, until that is mended."""
    gave_up: bool = False
    """Whether only a restart of the whole pod can help."""
    progress: ProgressReport | None = None
    stats: EngineStats = field(default_factory=EngineStats)
    heartbeat: float = 0.0
    """When the engine was last heard, in seconds of the monotonic clock."""
    synced: bool = False
    """Whether the whole desired set has been read and its required adapters loaded once."""
    set_hash: str = ""
    shards: tuple[ShardReport, ...] = ()
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def detail(self) -> str:
        """For people: what is wrong, or how far the start has come."""
        if self.failure is not None:
            return self.failure[1]
        progress = self.progress
        if self.started or progress is None:
            return self.engine_state.value
        if not progress.total_bytes:
            return progress.phase
        return f"{progress.phase}: {progress.done_bytes} of {progress.total_bytes} bytes"

    @property
    def engine_state(self) -> EngineState:
        """The one word for all of this."""
        if self.draining:
            return EngineState.DRAINING
        if self.failure is not None:
            return EngineState.FAILED
        return EngineState.STARTING if self.engine is None else EngineState.READY

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        up = self.engine is not None and self.has_text and self.synced
        return up and not self.draining

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until a condition holds; False when the time is over first."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
