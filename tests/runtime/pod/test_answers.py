"""What one pod answers beyond plain text: choices, log probabilities, echoes; nothing is faked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.pod import RunningPod, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PROMPT = "Once upon a time there was a little fox who lived in the forest and was very happy"


@pytest.fixture
async def pod() -> AsyncIterator[RunningPod]:
    async with run_pod(TINY) as running:
        yield running


async def ask(pod: RunningPod, path: str, **fields: Any) -> Any:
    answer = await pod.client.post(f"{pod.url}{path}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def prompt_tokens_computed(pod: RunningPod) -> float:
    page = (await pod.client.get(f"{pod.url}/metrics")).text
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
    return next(
        float(value) for name, value in lines if name.startswith("vllm:prompt_tokens_total")
    )


async def test_the_loglikelihood_of_a_text_is_transformers(pod: RunningPod) -> None:
    """Ask as lm-eval does: tokens in, one token out, everything echoed."""
    plain = {"prompt": PROMPT, "add_special_tokens": False}
    ids = (await ask(pod, "/tokenize", **plain))["tokens"]
    request = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    await ask(pod, "/v1/completions", prompt=[ids], max_tokens=1)
    body = await ask(pod, "/v1/completions", prompt=[ids, ids[:7]], **request)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    for choice, tokens in zip(body["choices"], (ids, ids[:7]), strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(tokens) + 1
        assert logprobs["token_logprobs"][0] is None
        for position, token in enumerate(tokens[1:], start=1):
            row = expected[position - 1]
            value = logprobs["token_logprobs"][position]
            # The pod may run in bfloat16.
            assert value == pytest.approx(float(row[token]), abs=0.1)
            best = max(logprobs["top_logprobs"][position].values())
            assert (value == best) == bool(token == row.argmax())


async def test_the_startup_probe_tells_how_far_the_start_has_come(pod: RunningPod) -> None:
    phases = {told.partition(":")[0] for told in pod.told}
    assert phases & {"downloading model", "starting engine", "loading weights", "warming up"}
    answer = await pod.client.get(f"{pod.url}/startupz")
    assert (answer.status_code, answer.json()["detail"]) == (200, "Ready")


async def test_eight_answers_compute_their_prompt_once(pod: RunningPod) -> None:
    body = await ask(
        pod, "/v1/completions", prompt=PROMPT, n=8, seed=7, max_tokens=12, temperature=1.0
    )
    assert len({choice["text"] for choice in body["choices"]}) > 4
    num_prompt = body["usage"]["prompt_tokens"]
    status = await pod.status()
    block = 16
    computed = await prompt_tokens_computed(pod)
    assert status.engine_restarts == 0
    assert num_prompt <= computed <= num_prompt + 7 * block
    page = (await pod.client.get(f"{pod.url}/metrics")).text
    (queued,) = [line for line in page.splitlines() if "queue_time_seconds_count{" in line]
    assert float(queued.rpartition(" ")[2]) >= 8
    (stepped,) = [line for line in page.splitlines() if "iteration_tokens_total_sum{" in line]
    assert float(stepped.rpartition(" ")[2]) >= computed
    again = await ask(
        pod, "/v1/completions", prompt=PROMPT, n=8, seed=7, max_tokens=12, temperature=1.0
    )
    assert again["choices"] == body["choices"]


async def test_rules_hold_for_every_token(pod: RunningPod) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0}
    (plain,) = (await ask(pod, "/v1/completions", **fields))["choices"]
    (bounded,) = (
        await ask(pod, "/v1/completions", **fields, repetition_penalty=5.0, min_tokens=24)
    )["choices"]
    assert bounded["text"] != plain["text"]
    assert bounded["finish_reason"] == "length"
    (only,) = (
        await ask(pod, "/v1/completions", **fields, allowed_token_ids=[40, 41], ignore_eos=True)
    )["choices"]
    assert len(set(only["logprobs"]["tokens"])) <= 2
    word = plain["text"].split()[0]
    (without,) = (await ask(pod, "/v1/completions", **fields, bad_words=[word]))["choices"]
    assert without["text"].split()[:1] != [word]


async def test_a_rule_that_leaves_nothing_fails_its_request_alone(pod: RunningPod) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 4, "allowed_token_ids": [40], "stop_token_ids": [40]}
    answer = await pod.client.post(f"{pod.url}/v1/completions", json={**fields, "min_tokens": 3})
    assert answer.status_code == 400
    assert "leave no token" in answer.json()["error"]["message"]
    assert await pod.complete(PROMPT)


async def test_the_best_of_four_has_details(pod: RunningPod) -> None:
    parameters = {"best_of": 4, "do_sample": True, "details": True, "max_new_tokens": 8}
    parameters |= {"top_n_tokens": 3, "top_k": 2, "decoder_input_details": True}
    body = await ask(pod, "/generate", inputs=PROMPT, parameters=parameters)
    details = body["details"]
    means = []
    for each in (details, *details["best_of_sequences"]):
        values = [token["logprob"] for token in each["tokens"]]
        means.append(sum(values) / len(values))
        assert all(len(tops) == 2 for tops in each["top_tokens"])
    assert means[0] == max(means)
    assert len(means) == 4
    assert len(details["prefill"]) == details["prompt_tokens"]
