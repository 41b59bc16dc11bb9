"""The public application over a model that says what a test wants, with a fitting template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend, script_of
from tests.support.toy_tokenizer import EOS, write_toy_tokenizer

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments.city }})"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
    "{# </think> #}"
)
"""Calls as Hermes writes them, and thoughts."""
SPEECH = (
    "<think>\nhm\n</think>\n\nLook."
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
)


def chat_folder(folder: Path, template: str = TEMPLATE) -> Path:
    """Write a toy tokenizer with a chat template into a folder."""
    write_toy_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def let_say(backend: FakeBackend, text: str, finish: str = "stop") -> None:
    """Make a backend answer with a text, and with the end token if it stops there."""
    assert backend.folder is not None
    tokenizer = Tokenizer.load(backend.folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = tokenizer.special_ids([EOS]) if finish == "stop" else ()
    backend.script = script_of([*ids, *ends], finish)


def last_prompt(backend: FakeBackend) -> str:
    """Return the last prompt that a backend was given."""
    assert backend.folder is not None
    ids = backend.submitted[-1].token_ids
    return Tokenizer.load(backend.folder).decode(ids, skip_special_tokens=False)


@asynccontextmanager
async def client_of(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    """Talk to the application over a backend."""
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client
    await app.state.frontend.grammars.close()
