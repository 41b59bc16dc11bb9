"""Fields that ask for a form: every spelling reaches the engine as a grammar, or is refused."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.errors import InvalidRequestError
from graft_runtime.metrics import Metrics
from graft_runtime.sampling import grammar_worker
from graft_runtime.sampling.constraint import Constraint, grammar_text
from graft_runtime.server.app import create_app
from graft_runtime.server.grammars import GrammarChecker
from tests.support.fake_backend import FakeBackend
from tests.support.grammars import toy

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TAG = {"triggers": ["<f"], "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}]}


def expected(kind: Any, value: Any, whitespace: str | None = None) -> str:
    written = value if isinstance(value, str) else json.dumps(value)
    return grammar_text(Constraint(kind=kind, value=written, whitespace_pattern=whitespace))


ANY_OBJECT = expected("json_object", "")
OF_SCHEMA = expected("json_schema", SCHEMA)


class NearChecker(GrammarChecker):
    """Checks as its process would, but here: `test_grammars` is about the process."""

    async def check(self, constraint: Constraint, param: str) -> str:
        vocabulary, tokenizer = toy()
        verdict = grammar_worker.check(constraint, vocabulary, tokenizer.special_texts)
        if verdict.error is not None:
            raise InvalidRequestError(f"`{param}`: {verdict.error}", param=param)
        return verdict.text


@pytest.fixture
async def client(backend: FakeBackend, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, ServerSettings(), metrics=metrics)
    checker = NearChecker(backend.tokenizer_dir)
    app.state.frontend = replace(app.state.frontend, grammars=checker)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client


OPENAI: list[tuple[dict[str, Any], str | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
        OF_SCHEMA,
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, OF_SCHEMA),
    ({"response_format": {"type": "json", "value": json.dumps(SCHEMA)}}, OF_SCHEMA),
    ({"response_format": {"type": "json_schema", "value": {"schema": SCHEMA}}}, OF_SCHEMA),
    ({"response_format": {"type": "regex", "value": "a+"}}, expected("regex", "a+")),
    ({"response_format": {"type": "structural_tag", **TAG}}, expected("structural_tag", TAG)),
    ({"structured_outputs": {"json": SCHEMA}}, OF_SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, OF_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
    ({"structured_outputs": {"regex": "[ab]", "choice": None}}, expected("regex", "[ab]")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, expected("choice", ["a", "b"])),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, expected("grammar", 'start: "a"')),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, expected("structural_tag", TAG)),
    (
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
        expected("json_schema", SCHEMA, " ?"),
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        expected("json_schema", SCHEMA, ""),
    ),
    ({"guided_json": SCHEMA}, OF_SCHEMA),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "auto"}, OF_SCHEMA),
    (
        {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
        expected("json_schema", SCHEMA, " ?"),
    ),
    ({"guided_regex": "[0-9]{2}"}, expected("regex", "[0-9]{2}")),
    ({"guided_choice": ["a", "b"]}, expected("choice", ["a", "b"])),
    ({"guided_grammar": 'root ::= "a"'}, expected("grammar", 'root ::= "a"')),
    ({"guided_whitespace_pattern": " ?"}, None),
]


@pytest.mark.parametrize(("fields", "grammar"), OPENAI)
async def test_openai_routes_read_every_spelling(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any], grammar: str | None
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": "hello", **fields})
    assert answer.status_code == 200, answer.text
    assert "x-graft-ignored-fields" not in answer.headers
    messages = [{"role": "user", "content": "hello"}]
    answer = await client.post("/v1/chat/completions", json={"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    assert [each.sampling.grammar for each in backend.submitted] == [grammar, grammar]


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"grammar": {"type": "json", "value": SCHEMA}}, OF_SCHEMA),
        ({"grammar": {"type": "json_object", "value": json.dumps(SCHEMA)}}, OF_SCHEMA),
        ({"grammar": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}}, OF_SCHEMA),
        ({"grammar": {"type": "regex", "value": "[ab]+"}}, expected("regex", "[ab]+")),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, OF_SCHEMA),
        ({"response_format": {"type": "text"}}, None),
    ],
)
async def test_tgi_routes_read_grammar_and_lorax_response_format(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any], grammar: str | None
) -> None:
    answer = await client.post("/generate", json={"inputs": "hello", "parameters": fields})
    assert answer.status_code == 200, answer.text
    assert backend.submitted[0].sampling.grammar == grammar


async def test_all_choices_of_all_prompts_follow_the_grammar(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "structured_outputs": {"choice": ["x", "y"]}}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    grammars = [each.sampling.grammar for each in backend.submitted]
    assert grammars == [expected("choice", ["x", "y"])] * 4


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema",
    ),
    ({"response_format": {"type": "json_object", "schema": 7}}, "response_format"),
    ({"response_format": {"type": "json", "value": "{"}}, "response_format"),
    ({"response_format": {"type": "regex"}}, "response_format.value"),
    ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a"] * 5000}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
    ),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": 4}}, "structured_outputs"),
    ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided"),
    ({"guided_regex": 7}, "guided_regex"),
    (
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        "guided_regex",
    ),
    # What only the checker can tell.
    ({"guided_regex": "(a"}, "guided_regex"),
    ({"guided_grammar": "start: ("}, "guided_grammar"),
    ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs.json"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        "response_format.json_schema",
    ),
]


@pytest.mark.parametrize(("fields", "param"), MALFORMED)
async def test_what_cannot_be_honoured_is_400_and_named(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": "hello", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert not backend.submitted


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": "(a"},
        {"type": "json", "value": {"type": "nonsense"}},
        {"type": "json"},
        {"type": "other", "value": "a"},
        "a",
    ],
)
async def test_tgi_says_422_to_a_grammar_it_cannot_follow(
    client: httpx.AsyncClient, backend: FakeBackend, grammar: Any
) -> None:
    body = {"inputs": "hello", "parameters": {"grammar": grammar}}
    answer = await client.post("/generate", json=body)
    if grammar == {"type": "json"}:
        assert answer.status_code == 200, "a form without a schema is any object"
        return
    assert answer.status_code == 422, answer.text
    assert answer.json()["error_type"] == "validation"
    assert "grammar" in answer.json()["error"]
    assert not backend.submitted


async def test_grammar_and_response_format_exclude_each_other(client: httpx.AsyncClient) -> None:
    both = {
        "grammar": {"type": "regex", "value": "a"},
        "response_format": {"type": "json_object"},
    }
    answer = await client.post("/generate", json={"inputs": "hello", "parameters": both})
    assert answer.status_code == 422
