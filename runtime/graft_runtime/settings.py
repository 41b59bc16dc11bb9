"""What each process of a pod is told when it starts. Built once at the door, never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from graft_protocol.base import Message
from graft_protocol.config import EngineSettings

DtypeName = Literal["auto", "float32", "bfloat16"]


class ChildSettings(Message):
    """What every child process is told."""

    socket: Path
    """The unix socket on which the server listens for it."""


class EngineChildSettings(ChildSettings):
    """What the engine process is told."""

    model_dir: Path
    dtype: DtypeName
    max_model_len: int | None
    device_pages: int
    engine: EngineSettings


class LoaderChildSettings(ChildSettings):
    """What the loader process is told."""

    cache_dir: Path
    credentials_dir: Path
    dtype: DtypeName
    max_rank: int
    max_adapter_bytes: int
    cache_max_bytes: int
    load_concurrency: int
    allowed_endpoints: tuple[str, ...]
    allowed_uris: tuple[str, ...]
    claims_dir: Path
