"""Clients that stop reading amid a crowd: they are given up, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.asyncio.client import ClientConnection, connect

from graft_runtime.server.kserve import inference_pb2 as pb
from graft_runtime.server.kserve.grpc_service import SERVICE
from graft_runtime.server.kserve.tensors import Tensor, to_bytes
from tests.support.pod import RunningPod, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
STALLED = NORMAL = 8
NUM_TOKENS = 400
BODY = {
    "prompt": "Once upon a time",
    "max_tokens": NUM_TOKENS,
    "ignore_eos": True,
    "temperature": 0,
    "logprobs": 20,
    "return_token_ids": True,
    "stream": True,
}
NUM_CHOICES = 32
"""Of those who do not read: an answer that fits into the kernel's buffers would be all sent before
anybody noticed."""
UNREAD = BODY | {"prompt": [BODY["prompt"]] * 4, "n": NUM_CHOICES // 4}
SMALL_BUFFER = 4096
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""Else a client takes megabytes that nobody reads."""

Stall = Callable[[RunningPod, AsyncExitStack], Awaitable[None]]
Read = Callable[[RunningPod], Awaitable[int]]
Count = Callable[[RunningPod], Awaitable[float]]


@pytest.fixture
async def pod() -> AsyncIterator[RunningPod]:
    async with run_pod(TINY) as running:
        yield running


async def small_socket(url: str) -> socket.socket:
    """Return a connection to a server that takes little before somebody reads."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, (host, int(port)))
    return made


def num_tokens(event: dict[str, Any]) -> int:
    return sum(len(choice["token_ids"]) for choice in event["choices"])


async def stall_http(pod: RunningPod, until_end: AsyncExitStack) -> None:
    client = until_end.enter_context(await small_socket(pod.url))
    data = json.dumps(UNREAD).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
    await asyncio.get_running_loop().sock_sendall(client, request)


async def read_http(pod: RunningPod) -> int:
    count = 0
    request = pod.client.stream("POST", f"{pod.url}/v1/completions", json=BODY)
    async with request as answer:
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if data and data != "[DONE]":
                count += num_tokens(json.loads(data))
    return count


def infer_request() -> pb.ModelInferRequest:
    sampling = {
        name: BODY[name] for name in ("max_tokens", "ignore_eos", "temperature", "logprobs")
    }
    asked = pb.ModelInferRequest(model_name="base")
    for each in (
        Tensor.row("text_input", "BYTES", [str(BODY["prompt"]).encode()]),
        Tensor.row("sampling_parameters", "BYTES", [json.dumps(sampling).encode()]),
        *(Tensor.row(name, "BOOL", [True]) for name in ("stream", "return_logprobs")),
    ):
        asked.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        asked.raw_input_contents.append(to_bytes(each))
    return asked


async def open_rpc(pod: RunningPod, until_end: AsyncExitStack) -> Any:
    channel = grpc.aio.insecure_channel(pod.grpc_address, SMALL_WINDOW)
    method = (await until_end.enter_async_context(channel)).stream_stream(
        f"/{SERVICE.full_name}/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    call = method()
    until_end.callback(call.cancel)  # which also keeps it: one that nobody holds is cancelled
    await call.write(infer_request())
    return call


async def stall_grpc(pod: RunningPod, until_end: AsyncExitStack) -> None:
    await open_rpc(pod, until_end)


async def read_grpc(pod: RunningPod) -> int:
    count = 0
    async with AsyncExitStack() as until_end:
        call = await open_rpc(pod, until_end)
        await call.done_writing()
        async for each in call:
            assert not each.error_message
            outputs = [output.name for output in each.infer_response.outputs]
            raw = dict(zip(outputs, each.infer_response.raw_output_contents, strict=True))
            count += len(json.loads(raw["logprobs"][4:]) or [])
    return count


async def open_socket(
    pod: RunningPod, until_end: AsyncExitStack, **options: Any
) -> ClientConnection:
    address = f"{pod.url.replace('http://', 'ws://', 1)}/v1/stream"
    return await until_end.enter_async_context(connect(address, proxy=None, **options))


async def ask_socket(client: ClientConnection, body: dict[str, Any]) -> None:
    message = {"type": "request", "id": "a", "path": "/v1/completions", "body": body}
    await client.send(json.dumps(message))


async def stall_socket(pod: RunningPod, until_end: AsyncExitStack) -> None:
    # Nobody takes from this queue of one message, and so nothing more is read for it.
    small = await small_socket(pod.url)
    # It sends no pings, either: it would leave when their answers are not read.
    options = {"max_queue": 1, "close_timeout": 0, "ping_interval": None}
    client = await open_socket(pod, until_end, sock=small, **options)
    await ask_socket(client, UNREAD)


async def read_socket(pod: RunningPod) -> int:
    count = 0
    async with AsyncExitStack() as until_end:
        client = await open_socket(pod, until_end)
        await ask_socket(client, BODY)
        while (message := json.loads(await client.recv()))["type"] == "event":
            count += num_tokens(message["data"])
        assert message["type"] == "end", message
    return count


async def num_closed(pod: RunningPod) -> float:
    """Return how many SSE streams the server has closed; their requests may have been done."""
    return pod.log.read_text().count("closed a stream that was not read")


async def num_sockets_closed(pod: RunningPod) -> float:
    """Return how many WebSockets the server has closed; their requests may have been done."""
    return pod.log.read_text().count("closed a connection that was not read")


async def num_aborted(pod: RunningPod) -> float:
    """Return how many requests the server has ended before they were done."""
    page = (await pod.client.get(f"{pod.url}/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("graft_aborted_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize(
    ("stall", "read", "num_given_up"),
    [
        (stall_http, read_http, num_closed),
        (stall_grpc, read_grpc, num_aborted),
        (stall_socket, read_socket, num_sockets_closed),
    ],
    ids=["sse", "grpc", "websocket"],
)
async def test_those_who_read_get_all_and_those_who_do_not_are_given_up(
    pod: RunningPod, stall: Stall, read: Read, num_given_up: Count
) -> None:
    async with AsyncExitStack() as until_end:
        for _ in range(STALLED):
            await stall(pod, until_end)
        counts = await asyncio.gather(*(read(pod) for _ in range(NORMAL)))
        assert counts == [NUM_TOKENS] * NORMAL
        await pod.until(lambda: num_given_up(pod), lambda count: count >= STALLED)
        await pod.until(pod.gauges, lambda gauges: not any(gauges.values()))
    assert '"level": "error"' not in pod.log.read_text()
