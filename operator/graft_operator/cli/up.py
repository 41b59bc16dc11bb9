"""`graft up`: the control loop over a local cluster, told to a person line by line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from graft_operator.cli.reporter import Reporter
from graft_operator.cluster.local import LocalCluster
from graft_operator.reconcile.controller import Controller
from graft_operator.settings import ControlSettings, LocalSettings

POLL_SECONDS = 0.1
"""Local pods are near and few; a person is waiting."""
SECRET_TTL_SECONDS = 3600.0
"""Local Secrets tell of their changes."""


@dataclass(frozen=True)
class UpOptions:
    """What the command line said."""

    folder: Path
    port: int = 0
    timeout_seconds: float | None = None
    runtime: str | None = None
    """Command that pods run instead of the installed runtime."""
    verbose: bool = False


def run_up(options: UpOptions) -> int:
    """Run until Ctrl-C or SIGTERM; return the exit code.

    Raises:
        LocalModeError: The folder cannot be used.
    """
    level = logging.DEBUG if options.verbose else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("graft_operator").setLevel(level)
    settings = LocalSettings(
        options.folder,
        first_port=options.port,
        runtime_command=tuple(shlex.split(options.runtime or "")),
    )
    return asyncio.run(_run(settings, options.timeout_seconds))


async def _run(settings: LocalSettings, timeout_seconds: float | None) -> int:
    cluster = LocalCluster(settings)
    control = ControlSettings(poll_busy_seconds=POLL_SECONDS)
    controller = Controller(cluster, control, secret_ttl_seconds=SECRET_TTL_SECONDS)
    reporter = Reporter(settings.folder, _say)
    cluster.subscribe(controller.on_change)
    cluster.subscribe(reporter.on_change)
    cluster.subscribe_problems(reporter.on_problems)
    controller.subscribe_reports(reporter.on_report)
    stop = asyncio.Event()
    _on_signals(stop, cluster)
    async with controller, cluster:
        reporter.greet(len(cluster.store.list_objects("InferenceService")))
        code = await _until_stopped(stop, cluster, reporter, timeout_seconds)
        _say("stopping (Ctrl-C again does not wait)")
    return code


async def _until_stopped(
    stop: asyncio.Event,
    cluster: LocalCluster,
    reporter: Reporter,
    timeout_seconds: float | None,
) -> int:
    waiting = asyncio.create_task(stop.wait(), name="wait for a signal")
    ready = asyncio.create_task(reporter.all_ready.wait(), name="wait until ready")
    try:
        await asyncio.wait(
            {waiting, ready}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting.done() or ready.done():
            await waiting
            return 0
    finally:
        ready.cancel()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ready
    for line in reporter.unready(cluster.store):
        _say(line, bad=True)
    _say(f"not everything is Ready after {timeout_seconds:g} s", bad=True)
    return 1


def _on_signals(stop: asyncio.Event, cluster: LocalCluster) -> None:
    def on_signal() -> None:
        if stop.is_set():
            cluster.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)


def _say(line: str, *, bad: bool = False, good: bool = False) -> None:
    color = "red" if bad else "green" if good else None
    try:
        click.secho(line, fg=color)
    except BrokenPipeError:
        # Whoever read along has left; what is served is served without them.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the process ends
