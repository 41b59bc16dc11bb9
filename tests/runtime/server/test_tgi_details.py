"""What TGI's and LoRAX's clients can learn beside the text: alternatives, prompts, best of many."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.ipc.messages import Sampling, TokenScore
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.backend import DEFAULT_TERMS, Target, Terms, TokenChunk
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend, chunk
from tests.support.sse_text import events


async def generate(
    client: httpx.AsyncClient, path: str = "/generate", **parameters: Any
) -> dict[str, Any]:
    body = {"inputs": "hello", "parameters": parameters}
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = events(response.text)[0] if "stream" in path else response.json()
    return answer


async def test_the_engine_is_told_what_was_asked(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await generate(
        client,
        typical_p=0.9,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        presence_penalty=-1,
        top_n_tokens=2,
        return_k_alternatives=4,
        decoder_input_details=True,
    )
    sampling = backend.submitted[0].sampling
    assert (sampling.typical_p, sampling.repetition_penalty) == (0.9, 1.2)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -1.0)
    assert (sampling.top_logprobs, sampling.prompt_logprobs) == (4, 0)
    assert sampling.processed_logprobs


@pytest.fixture
def alternatives(backend: FakeBackend, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    (fox,) = tokenizer.encode(" fox", add_special_tokens=False)
    pairs = [(fox, -0.1), (1, -0.5), (5, -3.0)]
    backend.script = [
        replace(chunk(5), top_logprobs=(tuple(pairs),)),
        replace(chunk(5, finish="length"), top_logprobs=(tuple(pairs),)),
    ]
    return pairs


async def test_top_tokens_stand_beside_the_tokens(
    client: httpx.AsyncClient, alternatives: list[tuple[int, float]]
) -> None:
    expected = [
        {"id": alternatives[0][0], "text": " fox", "logprob": -0.1, "special": False},
        {"id": 1, "text": "</s>", "logprob": -0.5, "special": True},
    ]
    body = await generate(client, details=True, top_n_tokens=2)
    assert body["details"]["top_tokens"] == [expected, expected]
    event = await generate(client, "/generate_stream", top_n_tokens=2)
    assert event["top_tokens"] == expected
    assert "top_tokens" not in await generate(client, "/generate_stream")
    assert "top_tokens" not in (await generate(client, details=True))["details"]


async def test_lorax_finds_alternatives_in_each_token(
    client: httpx.AsyncClient, alternatives: list[tuple[int, float]]
) -> None:
    body = await generate(client, details=True, return_k_alternatives=3)
    for token in body["details"]["tokens"]:
        assert [(each["id"], each["logprob"]) for each in token["alternative_tokens"]] == (
            alternatives
        )


async def test_details_of_the_prompt_imply_details(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode("hello", add_special_tokens=True)
    scores = tuple(TokenScore(-1.5, 3, []) for _ in prompt[1:])
    backend.script = [replace(chunk(5, finish="length"), prompt_scores=scores)]
    prefill = (await generate(client, decoder_input_details=True))["details"]["prefill"]
    assert [each["id"] for each in prefill] == prompt
    assert [each["logprob"] for each in prefill] == [None] + [-1.5] * len(scores)
    assert "".join(each["text"] for each in prefill) == "<s>hello"


@dataclass
class Rated(FakeBackend):
    """Answers its n-th request with a log probability of its own."""

    ratings: tuple[float, ...] = (-2.0, -0.5, -1.0)

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        target: Target,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[TokenChunk, None]:
        rating = self.ratings[len(self.submitted)]
        async for each in super().generate(request_id, token_ids, sampling, target, terms):
            yield replace(each, logprobs=(rating,) * len(each.token_ids))


async def test_the_best_of_several_is_the_likeliest(model_folder: Path) -> None:
    backend = Rated(model_folder, [chunk(5), chunk(6, finish="length")])
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        body = await generate(client, best_of=3, do_sample=True, details=True)
    seeds = [each.sampling.seed for each in backend.submitted]
    assert len(set(seeds)) == 3
    details = body["details"]
    assert details["seed"] == seeds[1]
    assert {token["logprob"] for token in details["tokens"]} == {-0.5}
    others = details["best_of_sequences"]
    assert [each["seed"] for each in others] == [seeds[0], seeds[2]]
    assert all(each["generated_text"] == body["generated_text"] for each in others)


@pytest.mark.parametrize(
    ("path", "parameters", "message"),
    [
        ("/generate", {"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        (
            "/generate",
            {"best_of": 2, "do_sample": True, "seed": 3},
            "`seed` must not be set when `best_of` > 1",
        ),
        (
            "/generate_stream",
            {"best_of": 2, "do_sample": True},
            "`best_of` != 1 is not supported when streaming tokens",
        ),
        (
            "/generate_stream",
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
async def test_what_excludes_each_other_is_refused_in_tgis_words(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    path: str,
    parameters: dict[str, Any],
    message: str,
) -> None:
    response = await client.post(path, json={"inputs": "hello", "parameters": parameters})
    assert response.status_code == 422
    assert response.json()["error"] == f"Input validation error: {message}"
    assert backend.submitted == []
