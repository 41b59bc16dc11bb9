"""Adapters with chat templates of their own on a whole pod: used, replaced, refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from graft_protocol.reasons import AdapterState, Reason
from tests.support.peft_adapters import make_adapter
from tests.support.pod import RunningPod, entry_for, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
TEMPLATE = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"


@pytest.fixture
async def pod() -> AsyncIterator[RunningPod]:
    async with run_pod(TINY) as running:
        yield running


def with_template(adapter: Path, folder: Path, template: str) -> Path:
    shutil.copytree(adapter, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


async def tokens(pod: RunningPod, model: str, content: str) -> list[int]:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    answer = await pod.client.post(f"{pod.url}/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["tokens"]
    return ids


async def num_prompt_tokens(pod: RunningPod, model: str, content: str) -> int:
    """Return how long a chat's prompt is that is asked for on a WebSocket."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    body["stream_options"] = {"include_usage": True}
    message = {"type": "request", "id": "a", "path": "/v1/chat/completions", "body": body}
    url = pod.url.replace("http://", "ws://", 1)
    async with connect(f"{url}/v1/stream", proxy=None) as client:
        await client.send(json.dumps(message))
        counts = []
        while (answer := json.loads(await client.recv()))["type"] == "event":
            counts += [usage["prompt_tokens"] for usage in (answer["data"].get("usage"),) if usage]
        assert answer["type"] == "end", answer
    (count,) = counts
    return int(count)


async def test_each_version_has_the_template_of_its_content(
    pod: RunningPod, tmp_path: Path
) -> None:
    adapter = make_adapter(TINY, tmp_path / "plain", rank=4, seed=1)
    first = with_template(adapter, tmp_path / "first", TEMPLATE)
    other = with_template(adapter, tmp_path / "other", TEMPLATE.replace("upper", "lower"))
    broken = with_template(adapter, tmp_path / "broken", "{% for m in messages %}")
    plain = entry_for("plain", adapter)
    own, changed, bad = (
        entry_for(name, folder, with_template=True)
        for name, folder in (("own", first), ("own", other), ("bad", broken))
    )
    assert len({plain.digest, own.digest, changed.digest, bad.digest}) == 4
    pod.desire([plain, own, bad])
    await pod.until_available(plain, own)
    assert await tokens(pod, "own", "Ab") == await tokens(pod, "own", "AB")
    assert await tokens(pod, "plain", "Ab") != await tokens(pod, "plain", "AB")
    body = {"model": "own", "messages": [{"role": "user", "content": "Ab"}], "max_tokens": 4}
    answer = await pod.client.post(f"{pod.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] == len(await tokens(pod, "own", "AB"))

    await pod.until(pod.states, lambda found: found.get(bad.revision) is AdapterState.FAILED)
    assert await num_prompt_tokens(pod, "own", "Ab") == len(await tokens(pod, "own", "AB"))
    reports = {one.revision: one for one in (await pod.status()).revisions}
    assert reports[bad.revision].reason is Reason.MALFORMED_ARTIFACT
    assert "chat_template.jinja" in reports[bad.revision].message

    pod.desire([plain, changed])
    await pod.until_available(changed)
    await pod.until(pod.states, lambda found: own.revision not in found)
    assert await tokens(pod, "own", "Ab") == await tokens(pod, "own", "ab")
