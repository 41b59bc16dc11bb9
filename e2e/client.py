"""Talks to a service over HTTP, once or all the time, as its users do. Knows no Kubernetes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import httpx

from e2e.cluster.processes import wait_until

PROMPT = "Once upon a time"
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, or why there was none."""

    status: int
    """Of HTTP; 0 where no whole answer came."""
    text: str
    """Of the completion, or the error."""
    asked_at: float = 0.0
    """When it was asked for, in seconds of the monotonic clock; 0 outside a `Load`."""

    @property
    def is_ok(self) -> bool:
        """Whether a completion came."""
        return self.status == httpx.codes.OK


@dataclass(frozen=True, slots=True)
class Client:
    """A client of one service. Each request opens a connection of its own: any pod may answer."""

    url: str
    key: str = ""
    """Sent as a bearer token where there is one."""

    def ask(self, model: str, *, max_tokens: int = 40, **fields: Any) -> Answer:
        """Return what a model says, greedily."""
        body = _body(model, max_tokens) | fields
        url = f"{self.url}/v1/completions"
        try:
            answer = httpx.post(url, json=body, headers=self._headers, timeout=SECONDS)
        except httpx.TransportError as error:
            return Answer(0, f"{type(error).__name__}: {error}")
        if answer.status_code != httpx.codes.OK:
            return Answer(answer.status_code, answer.text)
        return Answer(answer.status_code, answer.json()["choices"][0]["text"])

    def stream(self, model: str, *, max_tokens: int = 40, **fields: Any) -> Iterator[str]:
        """Yield the pieces of a streamed completion as they come."""
        body = _body(model, max_tokens) | fields | {"stream": True}
        url, headers = f"{self.url}/v1/completions", self._headers
        with httpx.stream("POST", url, json=body, headers=headers, timeout=SECONDS) as it:
            it.raise_for_status()
            for line in it.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]

    def models(self) -> set[str]:
        """Return the names that requests may ask for."""
        answer = httpx.get(f"{self.url}/v1/models", headers=self._headers, timeout=SECONDS)
        answer.raise_for_status()
        return {model["id"] for model in answer.json()["data"]}

    def with_key(self, key: str) -> Client:
        """Return the same with another key."""
        return replace(self, key=key)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass
class Load:
    """Users who ask one model again and again until the `with` block ends."""

    client: Client
    model: str
    num_users: int = 3
    max_tokens: int = 40
    ignore_eos: bool = False
    """Take all tokens, so that every request is as long as the others."""
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _users: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._users = [threading.Thread(target=self._use) for _ in range(self.num_users)]
        for user in self._users:
            user.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for user in self._users:
            user.join()

    @property
    def failed(self) -> list[Answer]:
        """The answers that were none."""
        return [answer for answer in self.answers if not answer.is_ok]

    def asked_after(self, moment: float) -> list[Answer]:
        """Return the answers to what was asked after a moment of the monotonic clock."""
        return [answer for answer in self.answers if answer.asked_at > moment]

    def next_answers(self, count: int, *, seconds: float = SECONDS) -> list[Answer]:
        """Wait for that many answers to what is asked from now on, and return them."""
        moment = time.monotonic()
        wait_until(
            lambda: len(self.asked_after(moment)) >= count, f"{count} answers", seconds=seconds
        )
        return self.asked_after(moment)

    def _use(self) -> None:
        while not self._stop.is_set():
            asked_at = time.monotonic()
            length = {"max_tokens": self.max_tokens, "ignore_eos": self.ignore_eos}
            answer = self.client.ask(self.model, **length)
            self.answers.append(replace(answer, asked_at=asked_at))


def _body(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0}
