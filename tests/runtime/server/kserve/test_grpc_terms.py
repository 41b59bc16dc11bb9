"""What gRPC's metadata say of requests and refusals, and what becomes of who does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from graft_protocol.config import ServerSettings
from graft_runtime.errors import DrainingError, InvalidRequestError, OverloadedError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.backend import Terms
from graft_runtime.server.kserve import grpc_stream
from graft_runtime.server.kserve import inference_pb2 as pb
from graft_runtime.server.kserve.grpc_listener import GrpcListener
from graft_runtime.server.kserve.grpc_service import SERVICE
from graft_runtime.server.kserve.tensors import Tensor, to_bytes
from tests.support.fake_backend import ADAPTER, FakeBackend, chunk

DEADLINE_SECONDS = 30.0
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""Else the client takes megabytes that nobody reads."""
METADATA = (
    ("x-graft-priority", "7"),
    ("x-graft-cache-salt", "pepper"),
    ("x-graft-route-key", "session-7"),
)


@pytest.fixture
async def channel(backend: FakeBackend, metrics: Metrics) -> AsyncIterator[Any]:
    frontend = create_app(backend, ServerSettings(), metrics=metrics).state.frontend
    listener = GrpcListener(frontend, host="127.0.0.1", port=0, grace_seconds=0)
    port = await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", SMALL_WINDOW) as channel:
        yield channel
    await listener.stop()


def message(**flags: bool) -> pb.ModelInferRequest:
    tensors = [Tensor.row("text_input", "BYTES", [b"hello "])]
    tensors += [Tensor.row(name, "BOOL", [value]) for name, value in flags.items()]
    asked = pb.ModelInferRequest(model_name=ADAPTER)
    for each in tensors:
        asked.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        asked.raw_input_contents.append(to_bytes(each))
    return asked


def infer(channel: Any) -> Any:
    return channel.unary_unary(
        f"/{SERVICE.full_name}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def stream_infer(channel: Any, **options: Any) -> Any:
    method = channel.stream_stream(
        f"/{SERVICE.full_name}/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return method(**options)


async def test_metadata_say_what_headers_say(channel: Any, backend: FakeBackend) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await infer(channel)(message(), metadata=METADATA)
        call = stream_infer(channel, metadata=METADATA)
        await call.write(message(stream=True))
        await call.done_writing()
        assert [each async for each in call]
    priorities = [(each.terms.priority, each.terms.cache_salt) for each in backend.submitted]
    assert priorities == [(7, "pepper")] * 2
    assert set(backend.route_keys) == {"session-7"}


async def test_metadata_that_cannot_be_honoured_are_refused_by_name(
    channel: Any, backend: FakeBackend
) -> None:
    metadata = (("x-graft-priority", "first"),)
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError, match="x-graft-priority") as caught:
            await infer(channel)(message(), metadata=metadata)
        call = stream_infer(channel, metadata=metadata)
        await call.write(message(stream=True))
        assert "`x-graft-priority`" in (await call.read()).error_message
        await call.done_writing()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert backend.submitted == []


async def test_a_time_among_the_metadata_bounds_the_request(
    channel: Any, backend: FakeBackend
) -> None:
    terms = Terms(timeout_seconds=9.0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await infer(channel)(message(), metadata=(("x-request-timeout", "9"),))
        assert backend.submitted[0].terms == terms
        await infer(channel)(message(), metadata=(("x-request-timeout", "9"),), timeout=5)
    # The library rounds what is left of a deadline up.
    assert 0 < (backend.submitted[1].terms.timeout_seconds or 0) < 6


async def test_a_client_that_reads_nothing_loses_its_requests(
    channel: Any, backend: FakeBackend, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_stream, "SLOW_READER_SECONDS", 0.3)
    backend.limit, backend.script = 10**6, [chunk(*[70] * 1024)] * 4096
    async with asyncio.timeout(DEADLINE_SECONDS):
        call = stream_infer(channel)
        await call.write(message(stream=True))
        while not backend.submitted or backend.running:
            backend.closed.clear()
            await backend.closed.wait()
        # Others are served on, over the same connection.
        backend.script = [chunk(70, finish="length")]
        assert (await infer(channel)(message())).outputs
        with pytest.raises(grpc.aio.AioRpcError, match="does not read") as caught:
            [each async for each in call]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 'graft_aborted_total{reason="slow_reader"} 1.0' in metrics.expose().decode()


@pytest.mark.parametrize(
    ("refusal", "seconds"),
    [
        (OverloadedError("full", retry_after_seconds=3), 3),
        (DrainingError("going down"), 1),
        (InvalidRequestError("nonsense"), None),
    ],
)
async def test_what_may_be_tried_again_says_when(
    channel: Any, backend: FakeBackend, refusal: Any, seconds: int | None
) -> None:
    backend.refusal = refusal
    call = infer(channel)(message())
    code = await call.code()
    found = dict(await call.trailing_metadata()).get("grpc-status-details-bin")
    if seconds is None:
        assert found is None
        return
    told = Status.FromString(found)
    assert (told.code, told.message) == (code.value[0], refusal.message)
    info = RetryInfo()
    assert told.details[0].Unpack(info)
    assert info.retry_delay.seconds == seconds
