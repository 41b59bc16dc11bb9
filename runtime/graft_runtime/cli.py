"""``graft-runtime``: settings -> objects -> run. The only place where a pod's objects are wired."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml
from pydantic import ValidationError

from graft_protocol.config import RuntimeConfig, ServerSettings
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT, PodPaths
from graft_runtime import __version__
from graft_runtime.errors import InvalidRequestError, ReasonedError
from graft_runtime.log import configure_logging
from graft_runtime.settings import EngineChildSettings, LoaderChildSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from graft_runtime.server.kserve.grpc_listener import GrpcListener
    from graft_runtime.server.listener import Listener

logger = logging.getLogger(__name__)

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
ENV_LOG_TEXT = "GRAFT_LOG_TEXT"
"""Set to 1, prompts and outputs come to stand in the log."""
PR_SET_PDEATHSIG = 1
"""Linux: the signal a process gets when its parent dies (prctl(2))."""


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Serve one base model and its adapters."""


@main.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: os.environ.get(ENV_POD_ROOT, "/"),
    help="Folder under which the pod's mounts lie.",
)
@click.option(
    "--name",
    default=lambda: os.environ.get(ENV_POD_NAME) or socket.gethostname(),
    help="The pod's name.",
)
def serve(root: Path, name: str) -> None:
    """Run the pod: server, engine and loader."""
    configure_logging("server")
    paths = PodPaths(root)
    config = _read_config(paths.config_file)
    token = _read_token(paths.token_file)
    _check_cache(paths.cache_dir)
    with asyncio.Runner() as runner:
        sys.exit(runner.run(_serve(config, paths, name, token)))


@main.command(hidden=True)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True))
def engine(settings_file: Path) -> None:
    """Run the engine process (started by the pod)."""
    _become_child("engine")
    from graft_runtime.engine.process import run_engine

    run_engine(EngineChildSettings.model_validate_json(settings_file.read_bytes()))


@main.command(hidden=True)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True))
def loader(settings_file: Path) -> None:
    """Run the loader process (started by the pod)."""
    _become_child("loader")
    from graft_runtime.adapters.loader import run_loader

    try:
        run_loader(LoaderChildSettings.model_validate_json(settings_file.read_bytes()))
    except ReasonedError as error:
        raise click.ClickException(_told(error)) from error


@main.command("merge-adapters")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, required=True, type=_FOLDER)
@click.option("--weight", "-w", "weights", multiple=True, type=float, help="One for each.")
def merge_adapters(out: Path, folders: tuple[Path, ...], weights: tuple[float, ...]) -> None:
    """Write the weighted sum of adapters to OUT (what `graft adapter merge` runs)."""
    from graft_runtime.adapters import merge

    try:
        merged = merge.merge_adapters(folders, weights, out)
    except ReasonedError as error:
        raise click.ClickException(_told(error)) from error
    except (InvalidRequestError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {merged.num_modules} modules, rank {merged.rank}", err=True)


@main.command(hidden=True)
@click.argument("model_dir", type=click.Path(path_type=Path, file_okay=False))
def grammar(model_dir: Path) -> None:
    """Run a grammar checker (started by the server)."""
    _become_child("grammar")
    from graft_runtime.sampling.grammar_worker import run_grammar_worker

    run_grammar_worker(model_dir)


@main.command(hidden=True)
def template() -> None:
    """Run a process for adapters' chat templates (started by the loader and the server)."""
    _become_child("template")
    from graft_runtime.text.guest_template import run_template_worker

    run_template_worker()


async def _serve(config: RuntimeConfig, paths: PodPaths, name: str, token: str) -> int:
    """Run everything until a signal, drain, and return the exit status."""
    # Here, so that the children start without what only the server needs.
    from graft_runtime.metrics import Metrics
    from graft_runtime.pod.pod import Pod
    from graft_runtime.server.app import create_app, create_internal_app
    from graft_runtime.server.listener import share_interpreter
    from graft_runtime.server.tracing import start_tracer

    stopping = _signals()
    share_interpreter()
    metrics = Metrics(config.model.served_name)
    pod = Pod(config, paths, name, metrics)
    settings = config.server
    tracer = start_tracer()
    public = create_app(
        pod.gateway,
        settings,
        metrics=metrics,
        texts=pod.texts,
        tracer=tracer,
        logs_text=os.environ.get(ENV_LOG_TEXT) == "1",
        adapters=pod.runtime_adapters,
    )
    internal = create_internal_app(pod.gateway, token)
    listeners = _listeners(public, internal, settings)
    for listener in listeners:
        await listener.start()
    running = [asyncio.create_task(pod.run())]
    running += [asyncio.create_task(listener.wait()) for listener in listeners]
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((stop, *running), return_when=asyncio.FIRST_COMPLETED)
    clean = stopping.is_set()
    if clean:
        logger.info("draining", extra={"requests": len(pod.gateway.streams)})
        await pod.drain(settings.drain_timeout_seconds)
    await asyncio.gather(*(listener.stop() for listener in listeners))
    await pod.stop()
    await asyncio.to_thread(tracer.close)
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.error("ended by an error", exc_info=outcome)
    logger.info("stopped")
    return 0 if clean else 1


def _listeners(
    public: FastAPI, internal: FastAPI, settings: ServerSettings
) -> tuple[Listener, GrpcListener, Listener]:
    """Put both applications, and the public one's gRPC surface, on their ports; none is bound."""
    from graft_runtime.server.kserve.grpc_listener import GrpcListener
    from graft_runtime.server.listener import Listener

    host = settings.host
    return (
        Listener(
            public,
            host=host,
            port=settings.port,
            drain_timeout_seconds=2,
            max_message_bytes=settings.max_body_bytes,
        ),
        GrpcListener(public.state.frontend, host=host, port=settings.grpc_port, grace_seconds=2),
        Listener(internal, host=host, port=settings.internal_port, drain_timeout_seconds=1),
    )


def _signals() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second one ends the process."""
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopping


def _become_child(name: str) -> None:
    """Leave signals to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    configure_logging(name)


def _read_config(path: Path) -> RuntimeConfig:
    try:
        return RuntimeConfig.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise click.ClickException(f"{path}: {error}") from error


def _check_cache(folder: Path) -> None:
    """End at once, and with one line, where every attempt to load something would fail."""
    from graft_runtime.sources.disk_check import check_disk_cache

    try:
        check_disk_cache(folder)
    except ReasonedError as error:
        raise click.ClickException(_told(error)) from error


def _told(error: ReasonedError) -> str:
    return f"{error.reason.value}: {error.message}"


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error
    if not token:
        raise click.ClickException(f"{path} is empty: the internal port would be open to all")
    return token


if __name__ == "__main__":
    main()
