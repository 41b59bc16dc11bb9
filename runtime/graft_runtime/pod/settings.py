"""From a pod's configuration to what each child is told."""

from __future__ import annotations

from pathlib import Path

from graft_protocol.config import RuntimeConfig
from graft_protocol.naming import PodPaths
from graft_runtime.errors import ChildDiedError
from graft_runtime.ipc.messages import ModelPrepared
from graft_runtime.settings import EngineChildSettings, LoaderChildSettings


def loader_settings(config: RuntimeConfig, paths: PodPaths, socket: Path) -> LoaderChildSettings:
    """Return what the loader is told."""
    adapters = config.adapters
    return LoaderChildSettings(
        socket=socket,
        cache_dir=paths.cache_dir,
        credentials_dir=paths.credentials_dir,
        dtype=config.model.dtype,
        max_rank=adapters.max_rank,
        max_adapter_bytes=adapters.max_bytes,
        cache_max_bytes=config.cache.max_bytes,
        load_concurrency=adapters.load_concurrency,
        allowed_endpoints=adapters.allowed_endpoints,
        allowed_uris=adapters.allowed_uris,
        claims_dir=paths.claims_dir,
    )


def engine_settings(
    config: RuntimeConfig, model: ModelPrepared | None, socket: Path
) -> EngineChildSettings:
    """Return what the engine is told.

    Raises:
        ChildDiedError: The base model is not on disk; the engine must not be started yet.
    """
    if model is None:
        raise ChildDiedError("the engine was started before the base model was there")
    return EngineChildSettings(
        socket=socket,
        model_dir=Path(model.path),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        device_pages=config.adapters.device_pages,
        engine=config.engine,
    )
