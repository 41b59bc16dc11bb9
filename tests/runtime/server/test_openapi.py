"""The description of the surface: served, of real routes, and true of what is answered."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from graft_runtime.server.openapi import ANSWERS, BODIES, ERRORS
from tests.support.fake_backend import BASE, FakeBackend

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert (await client.get("/api-doc/openapi.json")).json() == body, "where TGI has it"
    return body


def test_every_route_that_is_described_exists(document: dict[str, Any]) -> None:
    posts = {path for path, each in document["paths"].items() if "post" in each}
    assert BODIES.keys() <= posts
    assert ANSWERS.keys() <= document["paths"].keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = document["components"]["schemas"]

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].rpartition("/")[2] in known
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(document)
    for schema in known.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(set(ids)) == len(ids)


def test_what_is_read_by_hand_is_described_too(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["ChatFields"]["properties"]["messages"]["type"] == "array"
    assert len(schemas["CompletionFields"]["properties"]["prompt"]["anyOf"]) == 4
    assert "temperature" in schemas["Parameters"]["properties"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello", "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 3}),
        ("/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 3}}),
    ],
)
async def test_a_described_body_gets_a_described_answer(
    client: httpx.AsyncClient, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    [model] = BODIES[path]
    schema = {"$ref": f"#/components/schemas/{model.__name__}", **document}
    jsonschema.validate(body, schema)
    answer = (await client.post(path, json=body)).json()
    assert set(ANSWERS[path]) <= answer.keys()


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/generate", "tgi"),
        ("/v2/models/x/generate", "triton"),
    ],
)
async def test_errors_have_the_described_form(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, family: Any
) -> None:
    response = await client.post(path, json={"nothing": 1})
    assert 400 <= response.status_code < 500
    jsonschema.validate(response.json(), ERRORS[family])


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        (
            "infer",
            "/v2/models/{model}/infer",
            {
                "id": "r1",
                "inputs": [
                    {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hello"]}
                ],
                "outputs": [{"name": "text_output"}],
            },
        ),
        ("generate", "/v2/models/{model}/generate", {"text_input": "hello", "max_tokens": 3}),
        ("index", "/v2/repository/index", {"ready": True}),
        ("", "/v2/models/{model}", None),
        ("stats", "/v2/models/{model}/stats", None),
        ("", "/v2", None),
    ],
)
async def test_tensors_and_their_answers_are_what_is_described(
    client: httpx.AsyncClient, document: dict[str, Any], verb: str, path: str, body: Any
) -> None:
    method = "get" if body is None else "post"
    operation = document["paths"][path][method]
    known = {"components": document["components"]}
    if body is not None:
        taken = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, taken | known)
    url = path.replace("{model}", BASE)
    answer = await client.request(method, url, json=body)
    assert answer.status_code == 200, answer.text
    said = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), said | known)
    assert verb in url
