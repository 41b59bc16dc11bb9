"""The engine process: one loop that takes messages, steps the engine and sends what came out.

Started by the pod with a settings file; ends on `Shutdown` or with its parent.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import assert_never

import msgspec
import torch

from graft_runtime.engine.build import build_engine
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.report import StepReport
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.channel import Channel
from graft_runtime.ipc.messages import (
    Abort,
    EngineReady,
    EngineRefused,
    FromEngine,
    RegisterAdapter,
    Shutdown,
    StepFacts,
    StepOutputs,
    Submit,
    ToEngine,
    UnregisterAdapter,
)
from graft_runtime.settings import EngineChildSettings

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
BLOCKED_SECONDS = 0.005
"""Pause between looks while every request waits for something that comes by itself."""


def run_engine(settings: EngineChildSettings) -> None:
    """Load the model and serve until told to leave."""
    channel: Channel[ToEngine, FromEngine] = Channel(settings.socket, ToEngine)
    try:
        engine, ready = _build(settings, channel)
        channel.send(ready)
        # What is there now stays; looking through it again and again would hold up steps.
        gc.collect()
        gc.freeze()
        EngineLoop(engine, channel).run()
    except ReasonedError as error:
        logger.exception("the engine cannot start")
        channel.send(EngineRefused(error.reason.value, error.message))
    finally:
        channel.close()


def _build(
    settings: EngineChildSettings, channel: Channel[ToEngine, FromEngine]
) -> tuple[Engine, EngineReady]:
    """Build in a thread that ends with that, and leave this one without helpers.

    GNU's OpenMP keeps a team for each thread that ever ran something in parallel. Where all teams
    together are more than the cores, their members no longer wait awake for the next piece of
    work, and steps, which have hundreds of small ones, take up to twice as long.
    """
    with ThreadPoolExecutor(1, "build") as thread:
        built = thread.submit(build_engine, settings, channel.send).result()
    torch.set_num_threads(1)
    return built


class EngineLoop:
    """Messages in, steps, messages out."""

    def __init__(self, engine: Engine, channel: Channel[ToEngine, FromEngine]) -> None:
        self._engine = engine
        self._channel = channel
        self._last_sent = 0.0
        self._host_seconds: float | None = None
        self._ended: list[StepFacts] = []
        """Steps that no message has told of yet."""
        self._leaving = False

    def run(self) -> None:
        """Go round until `Shutdown`."""
        patience = 0.0
        mark, round_began = time.thread_time(), time.monotonic()
        while not self._leaving:
            for message in self._channel.receive(patience):
                self._take(message)
            was_busy = self._engine.has_work
            report = self._engine.step() if was_busy else StepReport()
            round_ended = time.monotonic()
            self._note(report.steps, round_ended - round_began)
            round_began = round_ended
            self._send(report)
            patience = self._patience(report)
            if was_busy and not self._engine.has_work:
                self._engine.check_integrity()
            now = time.thread_time()
            self._host_seconds = now - mark if report.num_tokens else None
            mark = now

    def _note(self, steps: Iterable[StepFacts], seconds: float) -> None:
        """Keep what a round's step was, for the next message."""
        host = self._host_seconds or 0.0
        self._ended += (
            msgspec.structs.replace(step, seconds=seconds, host_seconds=min(host, seconds))
            for step in steps
        )

    def _take(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self._engine.submit(message)
            case Abort():
                self._engine.abort(message.request_id)
            case RegisterAdapter():
                self._engine.register(message)
            case UnregisterAdapter():
                self._engine.unregister(message.revision)
            case Shutdown():
                self._leaving = True
            case _:
                assert_never(message)

    def _patience(self, report: StepReport) -> float:
        """Return how long to wait for messages before the next round."""
        if not self._engine.has_work:
            return HEARTBEAT_SECONDS
        if report.num_tokens or self._engine.is_copying:
            return 0.0
        return BLOCKED_SECONDS

    def _send(self, report: StepReport) -> None:
        for event in report.adapters:
            self._channel.send(event)
        now = time.monotonic()
        is_due = now - self._last_sent >= HEARTBEAT_SECONDS
        if is_due or not report.is_silent:
            stats = self._engine.stats()
            ended, self._ended = self._ended, []
            message = StepOutputs(
                report.said,
                stats,
                self._host_seconds,
                report.started,
                ended,
                report.more_ids,
                report.more_tokens,
            )
            self._channel.send(message)
            self._last_sent = now
