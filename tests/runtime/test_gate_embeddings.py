"""Hidden states from the running engine, against transformers and peft, whatever else it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from graft_runtime.engine.engine import Engine
from graft_runtime.ipc.messages import Sampling, Submit
from tests.support.gate import GateSettings, start_engine
from tests.support.peft_adapters import load_with_adapters, make_adapter
from tests.support.tiny_models import make_llama

# Shape legend: N positions of one sequence, H hidden size.

TOLERANCE = 1e-4
"""Of a hidden state, whose values are of the order of one."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), seed=3)


@torch.inference_mode()
def reference(loaded: PeftModel, tokens: list[int], adapter: str | None) -> Tensor:
    """Return transformers' hidden states behind the last norm."""
    if adapter is None:
        with loaded.disable_adapter():
            states = loaded(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    else:
        loaded.set_adapter(adapter)
        states = loaded(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    hidden_NH: Tensor = states.hidden_states[-1][0]
    return hidden_NH


def run(engine: Engine, requests: list[Submit]) -> dict[str, bytes]:
    """Submit all and return the embeddings."""
    for request in requests:
        engine.submit(request)
    found: dict[str, bytes] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.finish_reason != "error", output.error
            if output.embedding is not None:
                assert not output.token_ids
                found[output.request_id] = output.embedding
    engine.check_integrity()
    return found


def test_pooled_states_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    adapters = {"a": make_adapter(model, tmp_path / "a", seed=1)}
    # Blocks are scarce, so that prompts come in chunks and some are preempted.
    settings = GateSettings(num_blocks=24, max_batch_tokens=24, max_chunk_tokens=16)
    started = start_engine(model, adapters, tmp_path, settings)
    engine = started.engine
    engine.limits = replace(engine.limits, can_pool=True)
    shared = [7 + index % 90 for index in range(40)]
    prompts = [shared, [*shared, 9, 8], [5], [11] * 17, shared[:32]]
    poolings: tuple[Literal["last", "mean"], ...] = ("last", "mean")
    requests = [
        Submit(
            f"{pooling}-{number}-{adapter}",
            prompt,
            Sampling(max_tokens=1, pooling=pooling),
            adapter,
        )
        for number, prompt in enumerate(prompts)
        for pooling in poolings
        for adapter in (None, "a")
    ]
    text = [
        Submit(f"text-{number}", prompt, Sampling(max_tokens=9, temperature=0.0, ignore_eos=True))
        for number, prompt in enumerate(prompts)
    ]
    found = run(engine, [*requests[:9], *text, *requests[9:]])
    assert found.keys() == {each.request_id for each in requests}
    loaded = load_with_adapters(model, adapters)
    for request in requests:
        hidden_NH = reference(loaded, request.token_ids, request.adapter)
        expected_H = hidden_NH[-1] if request.sampling.pooling == "last" else hidden_NH.mean(dim=0)
        actual_H = np.frombuffer(found[request.request_id], dtype="<f4")
        delta = np.abs(actual_H - expected_H.numpy()).max()
        assert delta <= TOLERANCE * max(1.0, float(expected_H.std())), request.request_id


def test_a_model_that_gives_none_says_so(model: Path, tmp_path: Path) -> None:
    engine = start_engine(model, {}, tmp_path, GateSettings()).engine
    engine.submit(Submit("x", [5, 6], Sampling(max_tokens=1, pooling="last")))
    [output] = engine.step().outputs
    assert output.is_impossible
    assert output.error == "this model gives no embeddings"
