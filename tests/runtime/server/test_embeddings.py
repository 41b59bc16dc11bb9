"""The embeddings surface: all forms of input and of vectors, for the base model and adapters."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import httpx
import pytest

from graft_runtime.server.backend import TokenChunk
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend

PATH = "/v1/embeddings"
STATE = (3.0, 0.0, -4.0)


@pytest.fixture(autouse=True)
def vectors(backend: FakeBackend) -> None:
    data = struct.pack("<3f", *STATE)
    backend.script = [TokenChunk((), None, "stop", num_cached=1, embedding=data)]


async def ask(client: httpx.AsyncClient, path: str = PATH, **fields: Any) -> dict[str, Any]:
    response = await client.post(path, json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await ask(client, input=["hello", "world"], model=ADAPTER)
    assert (body["object"], body["model"]) == ("list", ADAPTER)
    assert [each["index"] for each in body["data"]] == [0, 1]
    assert body["data"][0]["object"] == "embedding"
    assert body["data"][0]["embedding"] == pytest.approx([0.6, 0.0, -0.8])
    assert body["embeddings"] == body["data"], "LoRAX's name of it"
    counts = [len(each.token_ids) for each in backend.submitted]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == sum(counts)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert {each.target.revision for each in backend.submitted} == {REVISION}
    assert {each.sampling.pooling for each in backend.submitted} == {"last"}


@pytest.mark.parametrize(
    ("given", "count"), [("hello", 1), (["a", "b", "c"], 3), ([4, 5, 6], 1), ([[4], [5, 6]], 2)]
)
async def test_all_forms_of_input_are_read(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, given: Any, count: int
) -> None:
    body = await ask(client, input=given)
    assert body["model"] == BASE
    assert len(body["data"]) == count
    if given == "hello":
        expected = tokenizer.encode("hello", add_special_tokens=True)
        assert backend.submitted[0].token_ids == expected


async def test_vectors_can_be_had_as_bytes_and_as_they_are(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = await ask(client, input="x", encoding_format="base64", normalize=False, pooling="mean")
    raw = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack("<3f", raw) == STATE
    assert backend.submitted[0].sampling.pooling == "mean"


async def test_many_inputs_are_taken(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await ask(client, input=[[5]] * 300)
    assert [each["index"] for each in body["data"]] == list(range(300))
    assert len({each.request_id for each in backend.submitted}) == 300


async def test_loraxs_form_is_one_vector(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await ask(client, "/embed", inputs="x", parameters={"adapter_id": ADAPTER})
    assert math.hypot(*body["embeddings"]) == pytest.approx(1)
    assert backend.submitted[0].target.revision == REVISION


async def test_a_platform_asks_by_the_bodys_form(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "/invocations", input="x"))["object"] == "list"


async def test_a_long_input_is_cut_only_on_request(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await client.post(PATH, json={"input": [5] * 256})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    await ask(client, input=[5] * 256, truncate_prompt_tokens=-1)
    await ask(client, input=[*[5] * 256, 6], truncate_prompt_tokens=2)
    assert [len(each.token_ids) for each in backend.submitted] == [255, 2]
    assert backend.submitted[1].token_ids == [5, 6]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[5]] * 2049}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": "x", "dimensions": 2}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "pooling": "cls"}, "pooling"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(PATH, json=fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
