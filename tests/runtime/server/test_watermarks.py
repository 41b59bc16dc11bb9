"""Fields that ask for a watermark, on every surface."""

from typing import Any

import httpx
import pytest
from transformers import WatermarkingConfig

from graft_runtime.ipc.messages import Watermark
from tests.support.fake_backend import FakeBackend

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
