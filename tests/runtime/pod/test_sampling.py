"""Structured output, watermarks and plugins through a whole pod; nothing is faked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoConfig, WatermarkDetector, WatermarkingConfig

from tests.support.plugin_folder import install_example
from tests.support.pod import RunningPod, run_pod, stream_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PROMPT = "Once upon a time"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["fox", "bear"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WIDE: dict[str, Any] = {"properties": {f"property{number}": {} for number in range(9000)}}


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningPod]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(install_example(folder)))
    async with run_pod(TINY) as running:
        yield running


async def ask(pod: RunningPod, path: str, status: int = 200, **fields: Any) -> Any:
    answer = await pod.client.post(f"{pod.url}{path}", json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_answers_follow_their_forms_while_others_stream(pod: RunningPod) -> None:
    plain = await pod.complete(PROMPT, max_tokens=60)
    body = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0}

    async def stream() -> str:
        return "".join([text async for text in stream_tokens(pod.client, pod.url, body)])

    schema = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    formed, tgi, chosen, streamed, refused = await asyncio.gather(
        ask(pod, "/v1/completions", prompt=PROMPT, n=4, seed=3, max_tokens=100,
            response_format=schema),
        ask(pod, "/generate", inputs=PROMPT,
            parameters={"grammar": {"type": "regex", "value": "[a-z]{4} [0-9]{2}"}}),
        ask(pod, "/v1/completions", prompt=PROMPT, guided_choice=["a fox", "a bear"]),
        stream(),
        ask(pod, "/v1/completions", 400, prompt=PROMPT, guided_json=WIDE),
    )  # fmt: skip
    for choice in formed["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    assert re.fullmatch("[a-z]{4} [0-9]{2}", tgi["generated_text"])
    assert chosen["choices"][0]["text"] in {"a fox", "a bear"}
    assert streamed == plain
    assert refused["error"]["param"] == "guided_json"
    assert (await pod.status()).engine_restarts == 0


async def test_a_streamed_answer_follows_its_form(pod: RunningPod) -> None:
    body = {"prompt": PROMPT, "max_tokens": 100, "structured_outputs": {"json": SCHEMA}}
    text = "".join([piece async for piece in stream_tokens(pod.client, pod.url, body)])
    jsonschema.validate(json.loads(text), SCHEMA)


async def test_a_watermark_is_found_in_what_the_pod_says(pod: RunningPod) -> None:
    # The model is very sure of itself: a weak mark would show in longer texts only.
    mark: dict[str, Any] = {"bias": 12.0, "hashing_key": 77, "greenlist_ratio": 0.25}
    parameters: dict[str, Any] = {
        "max_new_tokens": 120,
        "do_sample": True,
        "seed": 4,
        "details": True,
    }
    marked = parameters | {"watermark": mark}
    body = await ask(pod, "/generate", inputs=PROMPT, parameters=marked)
    tokens = [token["id"] for token in body["details"]["tokens"]]
    config = AutoConfig.from_pretrained(TINY)
    detector = WatermarkDetector(config, "cpu", WatermarkingConfig(**mark))
    assert detector(torch.tensor([tokens]), return_dict=True).z_score[0] > 4


async def test_an_installed_processor_has_its_say(pod: RunningPod) -> None:
    end_id = json.loads((TINY / "config.json").read_text())["eos_token_id"]
    end = {"name": "wind-down", "arguments": {"token_id": end_id, "after": 5, "strength": 50}}
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    body = await ask(pod, "/v1/completions", **fields, logits_processors=[end])
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] <= 8
    bad = {"name": "wind-down", "arguments": {"token_id": -1}}
    refused = await ask(pod, "/v1/completions", 400, **fields, logits_processors=[bad])
    assert refused["error"]["param"] == "logits_processors"
