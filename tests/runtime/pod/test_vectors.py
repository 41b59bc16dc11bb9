"""Embeddings from a real pod, against transformers and peft on the example model and adapter."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.pod import RunningPod, entry_for, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Shape legend: N positions of one text, H hidden size.

EXAMPLES = Path(__file__).parents[3] / "examples"
TINY = EXAMPLES / "models/tiny"
SHOUT = EXAMPLES / "adapters/shout"
TEXTS = ["Once upon a time there was a fox.", "The fox was happy."]


async def ask(pod: RunningPod, **fields: Any) -> list[Any]:
    response = await pod.client.post(f"{pod.url}/v1/embeddings", json={"input": TEXTS, **fields})
    assert response.status_code == 200, response.text
    return [each["embedding"] for each in response.json()["data"]]


async def token_ids(pod: RunningPod, text: str) -> list[int]:
    response = await pod.client.post(f"{pod.url}/tokenize", json={"prompt": text})
    ids: list[int] = response.json()["tokens"]
    return ids


@torch.inference_mode()
def states(model: Any, ids: list[int]) -> Tensor:
    """Return the hidden states [N, H] behind the last norm."""
    hidden_NH: Tensor = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return hidden_NH


def likeness(ours: Any, theirs_H: Tensor) -> float:
    """Return the cosine of the angle between two vectors."""
    expected_H = theirs_H.double().numpy()
    ours_H = np.asarray(ours, dtype=np.float64)
    assert np.linalg.norm(ours_H) == pytest.approx(1, abs=1e-5)
    return float(ours_H @ expected_H / np.linalg.norm(expected_H))


async def test_vectors_are_those_of_transformers() -> None:
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    async with run_pod(TINY) as pod:
        entry = entry_for("shout", SHOUT)
        pod.desire([entry])
        await pod.until_available(entry)
        ids = [await token_ids(pod, text) for text in TEXTS]
        last, mean = await ask(pod), await ask(pod, pooling="mean")
        adapted = await ask(pod, model="shout")
        packed = await ask(pod, encoding_format="base64")
    for index, tokens in enumerate(ids):
        hidden_NH = states(base, tokens)
        # The pod may run in bfloat16.
        assert likeness(last[index], hidden_NH[-1]) > 0.999
        assert likeness(mean[index], hidden_NH.mean(dim=0)) > 0.999
        unpacked = np.frombuffer(base64.b64decode(packed[index]), dtype="<f4")
        assert unpacked == pytest.approx(last[index])
    shouting = PeftModel.from_pretrained(base, SHOUT).eval()
    for index, tokens in enumerate(ids):
        hidden_NH = states(shouting, tokens)
        assert likeness(adapted[index], hidden_NH[-1]) > 0.999
        assert likeness(last[index], hidden_NH[-1]) < 0.99, "the adapter changes nothing"
