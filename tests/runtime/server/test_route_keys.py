"""What a client gives to have its requests routed alike reaches the choice of a version."""

from typing import Any

import httpx
import pytest

from tests.support.fake_backend import FakeBackend

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
HEADER = {"x-graft-route-key": "session-7"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "key"),
    [
        ("/v1/completions", {"prompt": "hello", "user": "ann"}, {}, "ann"),
        ("/v1/completions", {"prompt": "hello", "user": "ann"}, HEADER, "session-7"),
        ("/v1/completions", {"prompt": "hello"}, {}, None),
        ("/v1/chat/completions", {**CHAT, "user": "ann"}, {}, "ann"),
        ("/v1/chat/completions", CHAT, HEADER, "session-7"),
        ("/generate", {"inputs": "hello"}, HEADER, "session-7"),
    ],
)
async def test_the_header_comes_before_the_user(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    key: str | None,
) -> None:
    answer = await client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert backend.route_keys == [key]
    assert "user" not in answer.headers.get("x-graft-ignored-fields", "")
