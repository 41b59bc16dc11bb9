"""The gRPC server on a loopback port: RPCs, streams, cancelling, health, reflection."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from graft_protocol.config import ServerSettings
from graft_protocol.desired import key_hash
from graft_runtime.errors import DrainingError, EngineDiedError, OverloadedError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.backend import Health, Target
from graft_runtime.server.caller import may_use
from graft_runtime.server.context import Frontend
from graft_runtime.server.kserve import inference_pb2 as pb
from graft_runtime.server.kserve.grpc_listener import GrpcListener
from graft_runtime.server.kserve.grpc_messages import FINAL, WANTS_EMPTY_FINAL
from graft_runtime.server.kserve.grpc_service import SERVICE
from graft_runtime.server.kserve.tensors import Tensor, from_bytes, to_bytes
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend

DEADLINE_SECONDS = 60.0


class Client:
    """Calls RPCs by their names."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def method(self, name: str) -> Any:
        found = SERVICE.methods_by_name[name]
        kind = self.channel.stream_stream if found.server_streaming else self.channel.unary_unary
        return kind(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=getattr(pb, found.input_type.name).SerializeToString,
            response_deserializer=getattr(pb, found.output_type.name).FromString,
        )

    async def __call__(self, name: str, request: Any, **options: Any) -> Any:
        return await self.method(name)(request, timeout=DEADLINE_SECONDS, **options)


def frontend(backend: FakeBackend, metrics: Metrics) -> Frontend:
    parts: Frontend = create_app(backend, ServerSettings(), metrics=metrics).state.frontend
    return parts


@pytest.fixture
async def client(backend: FakeBackend, metrics: Metrics) -> AsyncIterator[Client]:
    listener = GrpcListener(frontend(backend, metrics), host="127.0.0.1", port=0, grace_seconds=0)
    port = await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel)
    await listener.stop()


def tensor(name: str, datatype: str, value: Any) -> Tensor:
    return Tensor.row(name, datatype, [value])


def request(
    *tensors: Tensor, model: str = BASE, raw: bool = True, **fields: Any
) -> pb.ModelInferRequest:
    tensors = tensors or (tensor("text_input", "BYTES", b"hello "),)
    parameters: dict[str, Any] = fields.pop("parameters", {})
    message = pb.ModelInferRequest(model_name=model, **fields)
    for each in tensors:
        added = message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if raw:
            message.raw_input_contents.append(to_bytes(each))
        elif each.datatype == "BOOL":
            added.contents.bool_contents.extend(each.values)
        else:
            added.contents.bytes_contents.extend(each.values)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(message.parameters[name], kinds[type(value)], value)
    return message


def streamed(*more: Tensor, **fields: Any) -> pb.ModelInferRequest:
    text = tensor("text_input", "BYTES", b"hello ")
    return request(text, tensor("stream", "BOOL", True), *more, **fields)


def outputs(response: pb.ModelInferResponse) -> dict[str, tuple[Any, ...]]:
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        each.name: from_bytes(each.name, each.datatype, each.shape, data).values
        for each, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }


async def status(call: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_everything_describes_itself(client: Client, backend: FakeBackend) -> None:
    assert (await client("ServerLive", pb.ServerLiveRequest())).live
    assert (await client("ServerReady", pb.ServerReadyRequest())).ready
    assert (await client("ModelReady", pb.ModelReadyRequest(name=ADAPTER))).ready
    assert not (await client("ModelReady", pb.ModelReadyRequest(name="nobody"))).ready
    server = await client("ServerMetadata", pb.ServerMetadataRequest())
    assert (server.name, bool(server.extensions)) == ("graft", True)
    model = await client("ModelMetadata", pb.ModelMetadataRequest(name=BASE))
    assert [each.name for each in model.inputs][:2] == ["text_input", "stream"]
    config = (await client("ModelConfig", pb.ModelConfigRequest(name=BASE))).config
    assert config.model_transaction_policy.decoupled
    assert config.input[0].data_type == pb.TYPE_STRING
    index = await client("RepositoryIndex", pb.RepositoryIndexRequest())
    assert [(each.name, each.state) for each in index.models] == [
        (BASE, "READY"),
        (ADAPTER, "READY"),
    ]


async def test_an_inference_gives_raw_tensors_and_echoes_the_id(
    client: Client, backend: FakeBackend
) -> None:
    response = await client("ModelInfer", request(id="r1", parameters={"temperature": 0.0}))
    assert (response.model_name, response.model_version, response.id) == (BASE, "1", "r1")
    assert outputs(response) == {"text_output": (b"hello one two three",)}
    assert backend.submitted[0].sampling.temperature == 0


async def test_values_may_stand_in_the_message_and_outputs_be_chosen(client: Client) -> None:
    message = request(
        tensor("text_input", "BYTES", b"hello "),
        tensor("exclude_input_in_output", "BOOL", True),
        raw=False,
    )
    for name in ("finish_reason", "text_output"):
        message.outputs.add(name=name)
    response = await client("ModelInfer", message)
    assert outputs(response) == {
        "finish_reason": (b"length",),
        "text_output": (b"one two three",),
    }


async def test_the_adapter_is_named_as_the_model_or_beside_it(
    client: Client, backend: FakeBackend
) -> None:
    await client("ModelInfer", request(model=ADAPTER))
    await client("ModelInfer", request(parameters={"lora_name": ADAPTER}))
    assert [each.target.revision for each in backend.submitted] == [REVISION] * 2


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (request(model="nobody"), grpc.StatusCode.NOT_FOUND, "Request for unknown model"),
        (request(model_version="2"), grpc.StatusCode.NOT_FOUND, "Request for unknown model"),
        (request(tensor("stream", "BOOL", False)), grpc.StatusCode.INVALID_ARGUMENT, "text_input"),
        (streamed(), grpc.StatusCode.INVALID_ARGUMENT, "ModelStreamInfer"),
        (
            request(parameters={"temperature": -1.0}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "temperature",
        ),
        (
            pb.ModelInferRequest(model_name=BASE, raw_input_contents=[b"x"]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "raw_input_contents",
        ),
    ],
)
async def test_a_bad_request_has_a_status_that_says_what_is_wrong(
    client: Client, backend: FakeBackend, message: pb.ModelInferRequest, code: Any, says: str
) -> None:
    found, details = await status(client("ModelInfer", message))
    assert found is code
    assert says in details
    assert not backend.submitted


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (OverloadedError("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (DrainingError("going down"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_refusals_of_the_pod_have_their_status(
    client: Client, backend: FakeBackend, metrics: Metrics, refusal: Any, code: Any
) -> None:
    backend.refusal = refusal
    assert (await status(client("ModelInfer", request())))[0] is code
    assert f'graft_rejected_total{{reason="{refusal.code}"}} 1.0' in metrics.expose().decode()


async def test_an_unexpected_error_is_opaque(client: Client, backend: FakeBackend) -> None:
    backend.script, backend.error = (), ValueError("secret")
    code, details = await status(client("ModelInfer", request()))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


async def test_too_large_a_message_is_refused(client: Client) -> None:
    large = request(tensor("text_input", "BYTES", b"x" * (3 * 2**20)))
    assert (await status(client("ModelInfer", large)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_request_id_comes_back(client: Client) -> None:
    call = client.method("ServerLive")(pb.ServerLiveRequest(), metadata=(("x-request-id", "a-b"),))
    assert ("x-request-id", "a-b") in tuple(await call.initial_metadata())
    await call


async def test_unknown_parameters_are_named(client: Client) -> None:
    call = client.method("ModelInfer")(request(parameters={"frobnicate": 1}))
    await call
    assert ("x-graft-ignored-fields", "frobnicate") in tuple(await call.trailing_metadata())


async def test_what_is_not_done_here_is_unimplemented(client: Client) -> None:
    for name in ("Load", "Unload"):
        message = getattr(pb, f"RepositoryModel{name}Request")(model_name="x")
        code, _ = await status(client(f"RepositoryModel{name}", message))
        assert code is grpc.StatusCode.UNIMPLEMENTED
    unknown = client.channel.unary_unary(f"/{SERVICE.full_name}/CudaSharedMemoryStatus")
    assert (await status(unknown(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_of_the_client_ends_the_request(
    client: Client, backend: FakeBackend
) -> None:
    backend.gate_at = 1
    call = client.method("ModelInfer")(request(), timeout=0.5)
    assert (await status(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(DEADLINE_SECONDS):
        await backend.closed.wait()
    assert not backend.running


async def test_cancelling_a_call_aborts_the_request(client: Client, backend: FakeBackend) -> None:
    backend.gate_at = 1
    call = client.method("ModelInfer")(request())
    async with asyncio.timeout(DEADLINE_SECONDS):
        await backend.reached_gate.wait()
        call.cancel()
        await backend.closed.wait()
    assert not backend.running


# Streams


async def exchange(client: Client, messages: Iterable[pb.ModelInferRequest]) -> list[Any]:
    async def send() -> AsyncIterator[pb.ModelInferRequest]:
        for message in messages:
            yield message

    async with asyncio.timeout(DEADLINE_SECONDS):
        return [each async for each in client.method("ModelStreamInfer")(send())]


async def test_a_stream_gives_new_text_and_flags_its_last_response(
    client: Client, backend: FakeBackend
) -> None:
    found = await exchange(client, [streamed(id="s1")])
    assert len(found) == len(backend.script)
    responses = [each.infer_response for each in found]
    texts = [outputs(each)["text_output"][0] for each in responses]
    assert b"".join(texts) == b"one two three"
    flags = [each.parameters[FINAL].bool_param for each in responses]
    assert flags == [False] * (len(found) - 1) + [True]
    assert {each.id for each in responses} == {"s1"}


async def test_an_empty_final_response_comes_when_asked_for(client: Client) -> None:
    *parts, last = await exchange(client, [streamed(parameters={WANTS_EMPTY_FINAL: True})])
    assert all(not each.infer_response.parameters[FINAL].bool_param for each in parts)
    assert last.infer_response.parameters[FINAL].bool_param
    assert not last.infer_response.outputs


async def test_requests_of_one_stream_run_side_by_side_and_fail_alone(
    client: Client, backend: FakeBackend
) -> None:
    found = await exchange(
        client,
        [
            streamed(id="good"),
            request(id="bad", model="nobody"),
            request(id="whole"),
            streamed(id="worse", parameters={"n": 0}),
        ],
    )
    errors = {each.infer_response.id: each.error_message for each in found if each.error_message}
    assert errors.keys() == {"bad", "worse"}
    assert errors["bad"].startswith("Request for unknown model: 'nobody'")
    whole = [each.infer_response for each in found if each.infer_response.id == "whole"]
    assert [outputs(each)["text_output"] for each in whole] == [(b"hello one two three",)]
    good = [each.infer_response for each in found if each.infer_response.id == "good"]
    assert b"".join(outputs(each)["text_output"][0] for each in good) == b"one two three"


async def test_a_failure_midway_is_told_in_the_stream(client: Client, backend: FakeBackend) -> None:
    backend.script, backend.error = backend.script[:1], EngineDiedError("the engine is gone")
    first, last = await exchange(client, [streamed(id="s")])
    assert outputs(first.infer_response)
    assert (last.error_message, last.infer_response.id) == ("the engine is gone", "s")


async def test_cancelling_a_stream_aborts_all_its_requests(
    client: Client, backend: FakeBackend
) -> None:
    backend.gate_at = 1
    call = client.method("ModelStreamInfer")()
    async with asyncio.timeout(DEADLINE_SECONDS):
        for id in "abc":
            await call.write(streamed(id=id))
        ids = {(await call.read()).infer_response.id for _ in range(3)}
        assert ids == set("abc")
        call.cancel()
        while backend.running:
            await backend.closed.wait()
            backend.closed.clear()


# Health and reflection


async def test_health_follows_readiness(client: Client, backend: FakeBackend) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", SERVICE.full_name):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert (await stub.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
    watching = stub.Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        backend.condition = Health(live=True, ready=False, started=True, detail="draining")
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watching.cancel()
    code, _ = await status(stub.Check(health_pb2.HealthCheckRequest(service="nobody")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(client: Client) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with asyncio.timeout(DEADLINE_SECONDS):
        answer = await stub.ServerReflectionInfo(iter([asked])).read()
    names = {each.name for each in answer.list_services_response.service}
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names


async def test_a_taken_port_is_an_error(client: Client, backend: FakeBackend) -> None:
    parts = frontend(backend, Metrics(BASE))
    first = GrpcListener(parts, host="127.0.0.1", port=0, grace_seconds=0)
    port = await first.start()
    second = GrpcListener(parts, host="127.0.0.1", port=port, grace_seconds=0)
    with pytest.raises(OSError, match="cannot bind"):
        await second.start()
    await first.stop()
    await second.stop()


async def test_the_key_in_the_metadata_is_known_where_a_name_is_looked_up(
    backend: FakeBackend, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = (key_hash("a-key-of-some-length"),)
    known: list[bool] = []

    def resolve(model: str | None, route_key: str | None = None) -> Target:
        known.append(may_use(access))
        return FakeBackend.resolve(backend, model, route_key)

    monkeypatch.setattr(backend, "resolve", resolve)
    for metadata in (
        (("authorization", "Bearer a-key-of-some-length"),),
        (),
        (("x-api-key", "a-key-of-some-length"),),
    ):
        known.clear()
        await client("ModelInfer", request(model=ADAPTER), metadata=metadata)
        assert set(known) == {bool(metadata)}
