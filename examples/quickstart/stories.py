"""Asks a service for stories, as any HTTP client would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx

PROMPT = "Once upon a time"
STORY_TOKENS = 60
LONG_TOKENS = 1900
NUM_STREAMS = 6
"""Long streams at a time: together they take a few seconds, so a change falls into them."""
DEADLINE_SECONDS = 240.0


class DemoError(Exception):
    """Something did not happen as it should have; the message says what."""


class Stream(threading.Thread):
    """One long stream from `pirate`, read in the background."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.events = 0
        self._url = url
        self._started_streaming = threading.Event()
        self.start()

    def run(self) -> None:
        """Read until the end."""
        for text in stream(self._url, "pirate", LONG_TOKENS, ignore_eos=True):
            self.text += text
            self.events += 1
            self._started_streaming.set()

    def wait_started(self) -> None:
        """Wait for the first token."""
        if not self._started_streaming.wait(DEADLINE_SECONDS):
            raise DemoError("the stream did not start")


def stream(url: str, model: str, max_tokens: int, **fields: Any) -> Iterator[str]:
    """Yield the texts of a streamed completion, greedy."""
    body = _body(model, max_tokens) | fields | {"stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        if answer.status_code != httpx.codes.OK:
            raise DemoError(f"{model}: HTTP {answer.status_code} {answer.read()!r}")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise DemoError(f"{model}: {event['error']}")
                yield event["choices"][0]["text"]


def complete(url: str, model: str) -> str:
    """Return a whole completion, greedy."""
    answer = httpx.post(f"{url}/v1/completions", json=_body(model, STORY_TOKENS), timeout=120)
    if answer.status_code != httpx.codes.OK:
        raise DemoError(f"{model}: HTTP {answer.status_code} {answer.text}")
    text: str = answer.json()["choices"][0]["text"]
    return text


def _body(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0}
