"""Write a pod's report from what it knows. Pure."""

from __future__ import annotations

from graft_protocol.config import RuntimeConfig
from graft_protocol.status import (
    CapacityReport,
    LoadReport,
    ModelReport,
    RevisionReport,
    RuntimeStatus,
)
from graft_runtime import __version__
from graft_runtime.pod.state import PodState


def build_status(
    config: RuntimeConfig,
    state: PodState,
    revisions: tuple[RevisionReport, ...],
    pod: str,
    restarts: tuple[int, int],
) -> RuntimeStatus:
    """Put the report together.

    Args:
        config: What the pod was told.
        state: What it knows.
        revisions: The adapters' part, from their manager.
        pod: The pod's name.
        restarts: How often the engine and the loader were started again.
    """
    reason, message = state.failure or (None, "")
    engine, stats, model = state.engine, state.stats, state.model
    return RuntimeStatus(
        version=__version__,
        pod=pod,
        state=state.engine_state,
        reason=reason,
        message=message,
        ready=state.ready,
        engine_restarts=restarts[0],
        loader_restarts=restarts[1],
        model=ModelReport(
            served_name=config.model.served_name,
            uri=config.model.uri,
            origin=None if model is None else model.origin,
            digest=None if model is None else model.digest,
            bytes=None if model is None else model.bytes,
            max_model_len=None if engine is None else engine.max_model_len,
        ),
        progress=None if engine is not None else state.progress,
        set_hash=state.set_hash,
        shards=state.shards,
        revisions=revisions,
        capacity=CapacityReport(
            device_pages=0 if engine is None else engine.device_pages,
            device_pages_free=stats.device_pages_free,
            max_rank=config.adapters.max_rank,
            kv_blocks=0 if engine is None else engine.kv_blocks,
        ),
        load=LoadReport(
            running=stats.running, waiting=stats.waiting, kv_blocks_used=stats.kv_blocks_used
        ),
    )
