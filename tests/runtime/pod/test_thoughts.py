"""A model that thinks, on a whole pod: as long as it may, then it answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pod import RunningPod, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# </think> #}"
PATH = "/v1/chat/completions"


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[RunningPod]:
    folder = tmp_path / "thinker"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    async with run_pod(folder) as running:
        yield running


async def test_a_thought_ends_where_its_budget_does(pod: RunningPod) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_tokens": 60,
        "temperature": 0.8,
        "seed": 3,
        "ignore_eos": True,
        "return_token_ids": True,
    }

    async def ask(**fields: Any) -> Any:
        answer = await pod.client.post(f"{pod.url}{PATH}", json=body | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    (endless,) = (await ask())["choices"]
    assert not endless["message"]["content"]  # this model never closes a thought by itself
    closing = {"prompt": "</think>", "add_special_tokens": False}
    mark = (await pod.client.post(f"{pod.url}/tokenize", json=closing)).json()["tokens"]
    for budget in (0, 7):
        whole = await ask(thinking_token_budget=budget, n=2)
        for choice in whole["choices"]:
            ids = choice["token_ids"]
            places = [at for at in range(len(ids)) if ids[at : at + len(mark)] == mark]
            assert places == [budget]
            assert choice["message"]["content"]
            assert bool(choice["message"].get("reasoning")) == bool(budget)
        streamed = ["", ""]
        fields = {"thinking_token_budget": budget, "n": 2, "stream": True}
        request = pod.client.stream("POST", f"{pod.url}{PATH}", json=body | fields)
        async with request as answer:
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data and data != "[DONE]":
                    for choice in json.loads(data)["choices"]:
                        streamed[choice["index"]] += choice["delta"].get("content") or ""
        assert streamed == [choice["message"]["content"] for choice in whole["choices"]]
