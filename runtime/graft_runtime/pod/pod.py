"""The supervising side of a pod: keeps the loader and the engine alive and passes on what they say.

The story of a start: loader up; base model on disk; engine up; desired set read; adapters prepared
by the loader and registered with the engine; ready.
"""

from __future__ import annotations

import asyncio
import logging
import time

from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import AdapterEntry
from graft_protocol.naming import PodPaths
from graft_protocol.reasons import Reason
from graft_protocol.status import ProgressReport
from graft_runtime.adapters.desired import DesiredReader, watch
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.errors import (
    ChildDiedError,
    DrainingError,
    EngineDiedError,
    ReasonedError,
)
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    AdapterResidency,
    EngineProgress,
    EngineReady,
    EngineRefused,
    FromEngine,
    FromLoader,
    LoaderProgress,
    LoaderReady,
    ModelPrepared,
    ModelRefused,
    PrepareAdapter,
    ReleaseAdapter,
    ToEngine,
    TokenOutput,
    ToLoader,
)
from graft_runtime.metrics import Metrics
from graft_runtime.pod.child import Callbacks, Child
from graft_runtime.pod.gateway import Gateway
from graft_runtime.pod.model_wish import ModelWish
from graft_runtime.pod.runtime_adapters import PodRuntimeAdapters
from graft_runtime.pod.settings import engine_settings, loader_settings
from graft_runtime.pod.state import PodState
from graft_runtime.text.model_text import ModelTextLoader

logger = logging.getLogger(__name__)

DESIRED_POLL_SECONDS = 0.2
TICK_SECONDS = 0.5
"""How often retries and deadlines are looked at."""


class Pod:
    """One pod from start to drain."""

    def __init__(self, config: RuntimeConfig, paths: PodPaths, name: str, metrics: Metrics) -> None:
        self._config = config
        self._paths = paths
        self._metrics = metrics
        self._state = PodState()
        self._manager = AdapterManager(name, config.adapters.drain_timeout_seconds)
        self._reader = DesiredReader(paths.adapters_dir)
        self._sync_deadline: float | None = None
        self._model_wish = ModelWish(config.model, name)
        self._model_there = asyncio.Event()
        self._loader: Child[FromLoader, ToLoader] = Child(
            "loader",
            paths.run_dir,
            FromLoader,
            lambda socket: loader_settings(config, paths, socket),
            Callbacks(self._loader_spawned, self._on_loader, self._loader_stopped),
        )
        self._engine: Child[FromEngine, ToEngine] = Child(
            "engine",
            paths.run_dir,
            FromEngine,
            lambda socket: engine_settings(config, self._state.model, socket),
            Callbacks(self._engine_spawned, self._on_engine, self._engine_stopped),
        )
        self.gateway = Gateway(config, self._state, self._manager, self._engine.post, name)
        self.texts = ModelTextLoader(self.gateway.tokenizer_dir)
        runtime = PodRuntimeAdapters(
            config, self._state, self._manager, name, lambda: self.gateway.streams.active
        )
        self._declared: tuple[AdapterEntry, ...] = ()
        self._runtime = runtime
        self._runtime.changed = self._desire
        self.runtime_adapters = runtime if config.adapters.allow_runtime_loading else None
        """None unless the service allows them."""
        self.gateway.restarts = lambda: (self._engine.restarts, self._loader.restarts)

    async def run(self) -> None:
        """Keep the pod going until cancelled."""
        self._paths.run_dir.mkdir(parents=True, exist_ok=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(self._loader))
            tasks.create_task(self._keep_engine())
            tasks.create_task(self._load_text())
            tasks.create_task(self._follow_desired())
            tasks.create_task(self._tick())

    async def drain(self, timeout_seconds: float) -> None:
        """Take no new requests, let running ones finish, then end what is left with an error."""
        self._state.draining = True
        self._state.notify()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.gateway.streams.wait_idle()
        except TimeoutError:
            self.gateway.streams.fail_all(DrainingError("The server is shutting down"))

    async def stop(self) -> None:
        """End both children."""
        await asyncio.gather(self._engine.stop(), self._loader.stop())

    # Children

    async def _keep(self, child: Child[FromLoader, ToLoader] | Child[FromEngine, ToEngine]) -> None:
        try:
            await child.run()
        except ChildDiedError as error:
            self._state.failure = (Reason.INTERNAL_ERROR, str(error))
            self._state.gave_up = True
            self._state.notify()

    async def _keep_engine(self) -> None:
        await self._model_there.wait()
        await self._keep(self._engine)

    async def _load_text(self) -> None:
        """Have the tokenizer ready before the first request asks for it."""
        await self._model_there.wait()
        try:
            await self.texts.get()
        except ReasonedError as error:
            self._state.failure = (error.reason, error.message)
        else:
            self._state.has_text = True
        self._state.notify()

    def _loader_spawned(self) -> None:
        logger.info("waiting for the loader")

    def _loader_stopped(self, reason: str) -> None:
        logger.error("loader stopped", extra={"ending": reason})
        self._manager.loader_stopped()
        self._publish()

    def _engine_spawned(self) -> None:
        self._state.progress = ProgressReport(phase="starting engine")

    def _engine_stopped(self, reason: str) -> None:
        self._state.engine = None
        self._manager.engine_stopped()
        self._metrics.engine_gone()
        self._metrics.engine_restarted()
        self.gateway.streams.fail_all(EngineDiedError(f"The engine {reason}"))
        self._publish()

    # What the loader says

    def _on_loader(self, message: FromLoader) -> None:
        match message:
            case LoaderReady():
                self._loader.post(self._model_wish.ask())
            case LoaderProgress(revision=None):
                self._state.progress = ProgressReport(
                    phase="downloading model",
                    done_bytes=message.done_bytes,
                    total_bytes=message.total_bytes,
                )
            case LoaderProgress(revision=str(revision)):
                self._manager.on_progress(revision, message.done_bytes, message.total_bytes)
            case ModelPrepared():
                self._on_model(message)
            case ModelRefused():
                self._on_no_model(message)
            case AdapterPrepared():
                self._manager.on_prepared(message)
            case AdapterRefused():
                self._manager.on_refused(message, time.monotonic())
        self._publish()

    def _on_model(self, message: ModelPrepared) -> None:
        if self._state.failure == self._model_wish.refusal:
            self._state.failure = None  # a refusal that has mended itself
        self._model_wish.fulfilled(message)
        self._state.model = message
        self._model_there.set()
        self._manager.loader_started()

    def _on_no_model(self, message: ModelRefused) -> None:
        pause = self._model_wish.refused(message, time.monotonic())
        self._state.failure = self._model_wish.refusal
        facts = {"reason": message.reason, "detail": message.message, "retry_seconds": pause}
        logger.warning("the base model was refused; it is asked for again", extra=facts)

    # What the engine says

    def _on_engine(self, message: FromEngine) -> None:
        self._state.heartbeat = time.monotonic()
        match message:
            case EngineProgress():
                self._state.progress = ProgressReport(
                    phase=message.phase,
                    done_bytes=message.done_bytes,
                    total_bytes=message.total_bytes,
                )
            case EngineReady():
                self._state.engine, self._state.started = message, True
                self._state.max_model_len = message.max_model_len
                self._metrics.set_max_lora(message.device_pages)
                self._metrics.cache_layout(
                    message.block_size, message.kv_blocks, message.max_model_len
                )
                self._manager.engine_started()
            case EngineRefused():
                self._state.failure = (Reason(message.reason), message.message)
                self._engine.abandon()
            case AdapterResidency():
                self._manager.on_residency(message, time.monotonic())
            case _:
                self._state.stats = message.stats
                self._metrics.observe_stats(message.stats)
                if message.host_seconds is not None:
                    self._metrics.host_time(message.host_seconds)
                for step in message.steps:
                    self._metrics.steps.observe(step)
                if message.started:
                    self._metrics.steps.begun(len(message.started))
                for request_id in message.started:
                    self.gateway.streams.begin(request_id)
                for output in message.outputs:
                    self.gateway.streams.deliver(output)
                for name, token in zip(message.more_ids, message.more_tokens, strict=True):
                    self.gateway.streams.deliver(TokenOutput(name, [token]))
                return  # the hot path: nothing below depends on tokens
        self._publish()

    # The desired set and time

    async def _follow_desired(self) -> None:
        await self._read_desired()
        async for _ in watch(self._paths.adapters_dir, poll_seconds=DESIRED_POLL_SECONDS):
            await self._read_desired()

    async def _read_desired(self) -> None:
        desired = await asyncio.to_thread(self._reader.read)
        self._state.set_hash, self._state.shards = desired.set_hash, desired.shard_reports
        self._declared = tuple(desired.entries)
        self._runtime.declare(self._declared)
        self._desire()
        if desired.complete and self._sync_deadline is None:
            timeout = self._config.adapters.sync_timeout_seconds
            self._sync_deadline = time.monotonic() + timeout
        self._publish()

    def _desire(self) -> None:
        """Tell the manager what is wanted: the declared set, and what clients have loaded."""
        entries = (*self._declared, *self._runtime.entries())
        now = time.monotonic()
        self._manager.set_desired(entries, now)
        self._publish()
        self._end_expired(now)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._manager.tick(now)
            self._end_expired(now)
            if self._model_wish.is_due(now):
                self._loader.post(self._model_wish.ask())
            self._metrics.adapter_states(self._manager.count_states())
            for seconds in self._manager.take_load_seconds():
                self._metrics.adapter_loaded(seconds)
            self._publish()

    def _end_expired(self, now: float) -> None:
        for revision in self._manager.expired(now):
            error = DrainingError("The model version was removed")
            self.gateway.streams.fail_revision(revision, error)

    def _publish(self) -> None:
        """Send what the manager decided and wake whoever waits for it."""
        if self._runtime.advance():
            self._desire()
            return
        for command in self._manager.take_commands():
            if isinstance(command, PrepareAdapter | ReleaseAdapter):
                self._loader.post(command)
            else:
                self._engine.post(command)
        if not self._state.synced and self._sync_deadline is not None:
            late = time.monotonic() >= self._sync_deadline
            self._state.synced = late or self._manager.required_are_available()
        self._state.notify()
