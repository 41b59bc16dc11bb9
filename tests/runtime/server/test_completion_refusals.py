"""What the completions surface refuses, and how it names it."""

from typing import Any

import httpx
import pytest

from tests.support.fake_backend import BASE, FakeBackend

PATH = "/v1/completions"


async def refused(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"prompt": "hello", **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 3),
        ("suffix", "x"),
        ("prompt_embeds", "x"),
        ("api_token", "secret"),
        ("use_beam_search", True),
    ],
)
async def test_a_known_field_that_is_not_honoured_is_refused_by_name(
    client: httpx.AsyncClient, field: str, value: Any
) -> None:
    error = await refused(client, **{field: value})
    assert error["param"] == field
    assert field in error["message"]


@pytest.mark.parametrize("value", [1, [], {}])
async def test_of_many_faults_the_first_alone_is_looked_for(
    client: httpx.AsyncClient, value: object
) -> None:
    error = await refused(client, bad_words=["a"] * 7 + [value] * 100_000)
    assert error["param"] == "bad_words[7]"
    assert error["message"] == "`bad_words[7]`: Input should be a valid string"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", ""]),
        ("prompt", ["a", 1]),
        ("prompt", [[1], "a"]),
        ("prompt", [1.5]),
        ("prompt", [True]),
        ("prompt", {"a": 1}),
        ("prompt", [-1]),
        ("prompt", [10**9]),
        ("prompt", ["a"] * 33),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "9"),
        ("max_tokens", True),
        ("max_tokens", 10**12),
        ("temperature", -0.1),
        ("temperature", 1e30),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["x" * 65]),
        ("stop", [1]),
        ("stop_token_ids", [10**6]),
        ("stop_token_ids", ["a"]),
        ("ignore_eos", "yes"),
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("n", 10**9),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("prompt_logprobs", -1),
        ("echo", 1),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "much"),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": "x"}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"999999": 1}),
        ("logit_bias", {str(id): 1 for id in range(301)}),
        ("logit_bias", [1.0]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [10**6]),
        ("bad_words", "word"),
        ("bad_words", [""]),
        ("bad_words", ["x" * 65]),
        ("bad_words", ["x"] * 65),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("model", 7),
        ("model", "m" * 10_000),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(
    client: httpx.AsyncClient, backend: FakeBackend, field: str, value: Any
) -> None:
    error = await refused(client, **{field: value})
    assert error["param"].startswith(field)
    assert error["type"] == "BadRequestError"
    assert backend.submitted == []


async def test_a_missing_prompt_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={"model": BASE})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


async def test_what_does_not_fit_the_context_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for fields in ({"max_tokens": 255}, {"prompt": [4] * 256}, {"prompt": "x" * 100_000}):
        error = await refused(client, **fields)
        assert error["code"] == "context_length_exceeded"
        assert "256" in error["message"]
    assert backend.submitted == []
