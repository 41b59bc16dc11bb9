"""The public application over a backend that replays tokens."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend, script_of
from tests.support.toy_tokenizer import write_toy_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.load(model_folder)


@pytest.fixture
def backend(model_folder: Path, tokenizer: Tokenizer) -> FakeBackend:
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    return FakeBackend(model_folder, script_of(ids, "length"))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(BASE)


@pytest.fixture
async def client(backend: FakeBackend, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, ServerSettings(), metrics=metrics)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client
    await app.state.frontend.grammars.close()
