"""Fields that ask for a watermark, on every surface."""

from typing import Any

import httpx
import pytest
from transformers import WatermarkingConfig

from graft_protocol.config import ServerSettings
from graft_runtime.ipc.messages import Watermark
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.watermarks import WatermarkFields
from tests.support.fake_backend import BASE, FakeBackend

CASES: list[tuple[Any, Watermark | None]] = [
    (None, None),
    (False, None),
    (True, Watermark()),
    ({}, Watermark()),
    (
        {"seeding_scheme": "selfhash", "bias": 1, "hashing_key": 7, "context_width": 4},
        Watermark(seeding_scheme="selfhash", bias=1.0, hashing_key=7, context_width=4),
    ),
    ({"greenlist_ratio": 0.5}, Watermark(greenlist_ratio=0.5)),
]
REFUSED: list[Any] = [
    "yes",
    1,
    {"bias": "strong"},
    {"bias": 1000},
    {"greenlist_ratio": 1},
    {"greenlist_ratio": 0},
    {"hashing_key": 0},
    {"hashing_key": 2**63},
    {"context_width": 0},
    {"seeding_scheme": "other"},
]


@pytest.mark.parametrize(("value", "expected"), CASES)
async def test_tgi_and_openai_routes_take_a_watermark(
    client: httpx.AsyncClient, backend: FakeBackend, value: Any, expected: Watermark | None
) -> None:
    parameters = {"max_new_tokens": 3, "watermark": value}
    answer = await client.post("/generate", json={"inputs": "hello", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    body = {"prompt": "hello", "watermarking": value}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert [each.sampling.watermark for each in backend.submitted] == [expected, expected]


@pytest.mark.parametrize("value", REFUSED)
async def test_a_watermark_that_cannot_be_made_is_refused_by_name(
    client: httpx.AsyncClient, backend: FakeBackend, value: Any
) -> None:
    body = {"inputs": "hello", "parameters": {"watermark": value}}
    answer = await client.post("/generate", json=body)
    assert answer.status_code == 422
    assert "`parameters.watermark" in answer.json()["error"]
    answer = await client.post("/v1/completions", json={"prompt": "hello", "watermarking": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("watermarking")
    assert not backend.submitted


def test_the_defaults_are_transformers() -> None:
    theirs = WatermarkingConfig()
    for name in Watermark.__struct_fields__:
        assert getattr(Watermark(), name) == getattr(theirs, name)


async def test_what_a_request_leaves_out_comes_from_the_service(
    backend: FakeBackend, metrics: Metrics
) -> None:
    settings = ServerSettings(
        watermark_hashing_key=99, watermark_greenlist_ratio=0.5, watermark_bias=3.0
    )
    app = create_app(backend, settings, metrics=metrics)
    transport = httpx.ASGITransport(app)
    text = {"text_input": "hello", "watermarking": True}
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        for path, body in (
            ("/generate", {"inputs": "hello", "parameters": {"watermark": True}}),
            ("/v1/completions", {"prompt": "hello", "watermarking": True}),
            ("/v1/completions", {"prompt": "hello", "watermarking": {"hashing_key": 7}}),
            (f"/v2/models/{BASE}/generate", text),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
    own = Watermark(hashing_key=99, greenlist_ratio=0.5, bias=3.0)
    other = Watermark(hashing_key=7, greenlist_ratio=0.5, bias=3.0)
    assert [each.sampling.watermark for each in backend.submitted] == [own, own, other, own]


def test_the_services_own_defaults_are_the_engines() -> None:
    assert WatermarkFields().told(ServerSettings()) == Watermark()
