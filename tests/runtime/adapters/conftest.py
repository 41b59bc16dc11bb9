"""A tiny base model and one peft adapter for it, made once; tests spoil copies."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_runtime.models.arch import DecoderArch, load_arch
from tests.support.peft_adapters import make_adapter
from tests.support.s3 import S3, serve_s3
from tests.support.tiny_models import make_llama


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama with grouped key and value heads."""
    return make_llama(tmp_path_factory.mktemp("base"), 0, num_hidden_layers=2)


@pytest.fixture(scope="session")
def arch(base_model: Path) -> DecoderArch:
    """Describe the base model."""
    return load_arch(base_model)


@pytest.fixture(scope="session")
def peft_adapter(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter of rank 4 for two modules. Never change it: copy it."""
    return make_adapter(
        base_model,
        tmp_path_factory.mktemp("adapter"),
        rank=4,
        target_modules=["q_proj", "down_proj"],
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Start an S3 endpoint; tests use buckets of their own."""
    with serve_s3() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder for a loader: pytest's own are too deep for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="graft-") as name:
        yield Path(name)
