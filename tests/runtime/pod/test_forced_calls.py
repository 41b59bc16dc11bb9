"""Calls of tools that a client forces, from a real model behind a real pod."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.pod import run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


async def test_a_model_that_knows_no_tools_calls_them_when_it_must() -> None:
    async with run_pod(TINY) as pod:
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            body = {
                "messages": [{"role": "user", "content": "Tell me a story."}],
                "tools": [TOOL],
                "tool_choice": choice,
                "parallel_tool_calls": False,
                "max_tokens": 200,
            }
            response = await pod.client.post(f"{pod.url}/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            [call] = response.json()["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            arguments = json.loads(call["function"]["arguments"])
            assert arguments["city"] in ("Rome", "Oslo")
            assert arguments["days"] <= 9
