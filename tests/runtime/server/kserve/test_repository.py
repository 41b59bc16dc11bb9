"""Loading and unloading in Triton's words, over a port that remembers what it was asked."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.errors import ModelNotFoundError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.kserve import inference_pb2 as pb
from graft_runtime.server.kserve.grpc_listener import GrpcListener
from graft_runtime.server.kserve.grpc_service import SERVICE
from tests.support.fake_backend import ADAPTER, FakeBackend
from tests.support.recording_port import RecordingPort

URI = "s3://bucket/x"
NESTED = {"parameters": {"lora_path": {"string_value": URI}}}


@pytest.fixture
def recorder() -> RecordingPort:
    return RecordingPort()


@pytest.fixture
def app(backend: FakeBackend, metrics: Metrics, recorder: RecordingPort) -> Any:
    return create_app(backend, ServerSettings(), metrics=metrics, adapters=recorder)


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client


async def load(client: httpx.AsyncClient, name: str, **parameters: Any) -> httpx.Response:
    path = f"/v2/repository/models/{name}/load"
    return await client.post(path, json={"parameters": parameters})


@pytest.mark.parametrize(
    "parameters",
    [
        {"lora_path": URI},
        {"config": json.dumps({"lora_path": URI})},
        {"config": json.dumps(NESTED)},
    ],
)
async def test_the_path_may_stand_wherever_a_client_can_write_it(
    client: httpx.AsyncClient, recorder: RecordingPort, parameters: dict[str, Any]
) -> None:
    answer = await load(client, "x", **parameters)
    assert (answer.status_code, answer.content) == (200, b"")
    assert recorder.asked == [("load", "x", URI, True)]


async def test_what_serves_already_needs_no_path(
    client: httpx.AsyncClient, recorder: RecordingPort
) -> None:
    assert (await client.post(f"/v2/repository/models/{ADAPTER}/load")).status_code == 200
    assert (await load(client, "nobody")).status_code == 404
    assert not recorder.asked


async def test_unloading_answers_as_the_port_does(
    client: httpx.AsyncClient, recorder: RecordingPort
) -> None:
    assert (await client.post("/v2/repository/models/x/unload")).status_code == 200
    recorder.refusal = ModelNotFoundError("none of that name")
    missing = await client.post("/v2/repository/models/y/unload")
    assert (missing.status_code, missing.json()) == (404, {"error": "none of that name"})
    assert recorder.asked == [("unload", "x"), ("unload", "y")]


@pytest.mark.parametrize(
    "parameters",
    [
        {"lora_path": 5},
        {"lora_path": ""},
        {"config": {}},
        {"config": "{"},
        {"file:1/model.json": "aGk="},
        {"config": json.dumps({"parameters": {"lora_path": 5}})},
    ],
)
async def test_what_names_no_path_is_refused(
    client: httpx.AsyncClient, recorder: RecordingPort, parameters: dict[str, Any]
) -> None:
    answer = await load(client, "x", **parameters)
    assert answer.status_code == 400
    assert not recorder.asked


async def test_the_rpcs_do_the_same(app: Any, recorder: RecordingPort) -> None:
    listener = GrpcListener(app.state.frontend, host="127.0.0.1", port=0, grace_seconds=0)
    port = await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        load_request = pb.RepositoryModelLoadRequest(model_name="x")
        load_request.parameters["config"].string_param = json.dumps(NESTED)
        for name, request in (
            ("Load", load_request),
            ("Unload", pb.RepositoryModelUnloadRequest(model_name="x")),
        ):
            call = channel.unary_unary(f"/{SERVICE.full_name}/RepositoryModel{name}")
            assert await call(request.SerializeToString()) == b""
    await listener.stop()
    assert recorder.asked == [("load", "x", URI, True), ("unload", "x")]
