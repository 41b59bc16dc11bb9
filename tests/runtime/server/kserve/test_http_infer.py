"""``infer`` over HTTP: tensors as JSON and as bytes, compressed and not."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from graft_runtime.server.kserve.tensors import Tensor, from_bytes, to_bytes
from tests.support.fake_backend import BASE, FakeBackend

INFER = f"/v2/models/{BASE}/infer"
LENGTH = "inference-header-content-length"


def text(value: str = "hello ") -> dict[str, Any]:
    return {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [value]}


def flag(name: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BOOL", "shape": [1], "data": [True]}


def binary_body(value: bytes, **document: Any) -> tuple[bytes, dict[str, str]]:
    tail = to_bytes(Tensor.row("text_input", "BYTES", [value]))
    tensor = {
        "name": "text_input",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(tail)},
    }
    head = json.dumps({"inputs": [tensor], **document}).encode()
    return head + tail, {LENGTH: str(len(head))}


def read_binary(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, Tensor]]:
    end = int(answer.headers[LENGTH])
    document = json.loads(answer.content[:end])
    tail = answer.content[end:]
    tensors = {}
    for each in document["outputs"]:
        size = each["parameters"]["binary_data_size"]
        tensors[each["name"]] = from_bytes(
            each["name"], each["datatype"], each["shape"], tail[:size]
        )
        tail = tail[size:]
    assert not tail
    return document, tensors


async def test_json_in_json_out(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, json={"id": "7", "inputs": [text()]})
    assert answer.json() == {
        "model_name": BASE,
        "model_version": "1",
        "id": "7",
        "outputs": [
            {
                "name": "text_output",
                "datatype": "BYTES",
                "shape": [1],
                "data": ["hello one two three"],
            }
        ],
    }


async def test_bytes_in_bytes_out_in_the_order_of_the_outputs(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    content, headers = binary_body(
        b"hello ",
        parameters={"binary_data_output": True, "temperature": 0},
        outputs=[{"name": "num_output_tokens"}, {"name": "text_output"}],
    )
    answer = await client.post(INFER, content=content, headers=headers)
    document, tensors = read_binary(answer)
    assert [each["name"] for each in document["outputs"]] == ["num_output_tokens", "text_output"]
    assert tensors["text_output"].values == (b"hello one two three",)
    assert tensors["num_output_tokens"].values == (len(backend.script),)
    assert backend.submitted[0].sampling.temperature == 0


async def test_each_output_says_how_it_comes(client: httpx.AsyncClient) -> None:
    outputs = [
        {"name": "text_output", "parameters": {"binary_data": False}},
        {"name": "finish_reason", "parameters": {"binary_data": True}},
    ]
    answer = await client.post(INFER, json={"inputs": [text()], "outputs": outputs})
    document = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert document["outputs"][0]["data"] == ["hello one two three"]
    assert answer.content.endswith(b"\6\0\0\0length")


@pytest.mark.parametrize(
    ("encoding", "compressed"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_bodies_and_answers_may_be_compressed(
    client: httpx.AsyncClient, backend: FakeBackend, encoding: str, compressed: Any
) -> None:
    backend.limit = 4096
    prompt = "é " * 600
    content, headers = binary_body(prompt.encode(), parameters={"binary_data_output": True})
    headers |= {"content-encoding": encoding, "accept-encoding": encoding}
    answer = await client.post(INFER, content=compressed(content), headers=headers)
    assert answer.headers["content-encoding"] == encoding
    _, tensors = read_binary(answer)
    assert tensors["text_output"].values == (f"{prompt}one two three".encode(),)


async def test_a_long_answer_is_compressed_when_the_client_takes_it(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.limit = 4096
    body = {"inputs": [text("é " * 600)]}
    answer = await client.post(INFER, json=body, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["outputs"][0]["data"][0].startswith("é é")
    plain = await client.post(INFER, json=body, headers={"accept-encoding": "gzip;q=0"})
    assert "content-encoding" not in plain.headers


async def test_what_a_body_grows_to_is_bounded(client: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * (3 * 2**20))
    answer = await client.post(INFER, content=bomb, headers={"content-encoding": "gzip"})
    assert answer.status_code == 413
    broken = await client.post(INFER, content=b"no", headers={"content-encoding": "gzip"})
    assert broken.status_code == 400
    short = await client.post(INFER, content=bomb[:100], headers={"content-encoding": "gzip"})
    assert short.status_code == 400
    other = await client.post(INFER, content=b"no", headers={"content-encoding": "br"})
    assert other.status_code == 415


async def test_a_raw_body_is_the_text_itself(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, content=b"hello ", headers={LENGTH: "0"})
    _, tensors = read_binary(answer)
    assert tensors["text_output"].values == (b"hello one two three",)


async def test_sampling_parameters_may_come_as_tensors(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    tensors = [
        {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [3]},
        {"name": "stop", "datatype": "BYTES", "shape": [1], "data": ["5"]},
    ]
    await client.post(INFER, json={"inputs": [text(), *tensors]})
    assert backend.submitted[0].sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [flag("stream"), text()]}, "stream"),
        ({"inputs": [text(), text()]}, "twice"),
        ({"inputs": [text() | {"datatype": "INT32", "data": [1]}]}, "text_input"),
        ({"inputs": [text() | {"shape": [2], "data": ["a", "b"]}]}, "text_input"),
        ({"inputs": [text() | {"shape": [2]}]}, "text_input"),
        ({"inputs": [text() | {"shape": [-1]}]}, "text_input"),
        ({"inputs": [text(), flag("frobnicate")]}, "unexpected inference input"),
        ({"inputs": [text(), flag("image")]}, "image"),
        ({"inputs": [text()], "outputs": [{"name": "x"}]}, "unexpected inference output"),
        (
            {"inputs": [text() | {"parameters": {"shared_memory_region": "r"}}]},
            "shared memory",
        ),
        (
            {
                "inputs": [text()],
                "outputs": [{"name": "text_output", "parameters": {"classification": 3}}],
            },
            "classification",
        ),
        ({"inputs": [text() | {"parameters": {"binary_data_size": -1}}]}, "binary_data_size"),
        ({"inputs": [text() | {"parameters": {"binary_data_size": 9}}]}, "bytes"),
    ],
)
async def test_what_does_not_fit_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, document: dict[str, Any], names: str
) -> None:
    answer = await client.post(INFER, json=document)
    assert answer.status_code == 400
    assert names in answer.json()["error"]
    assert not backend.submitted


@pytest.mark.parametrize("length", ["-1", "99999", "x", "9" * 400])
async def test_a_false_header_length_is_refused(client: httpx.AsyncClient, length: str) -> None:
    answer = await client.post(INFER, content=b"{}", headers={LENGTH: length})
    assert answer.status_code == 400


async def test_bytes_that_belong_to_no_input_are_refused(client: httpx.AsyncClient) -> None:
    content, headers = binary_body(b"hello")
    answer = await client.post(INFER, content=content + b"x", headers=headers)
    assert answer.status_code == 400
