"""Log probabilities of tokens that a request names: transformers' own, in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from graft_runtime.ipc.messages import Sampling, Submit, TokenOutput
from tests.support.gate import GateSettings, start_engine
from tests.support.tiny_models import make_llama

TOLERANCE = 1e-4
PROMPT = [(7 * place) % 150 + 3 for place in range(20)]
ASKED = {
    "named": Sampling(max_tokens=8, seed=1, logprobs=True, logprob_token_ids=(17, 3, 99)),
    "top": Sampling(max_tokens=8, seed=2, logprobs=True, top_logprobs=4),
    "plain": Sampling(max_tokens=8, seed=3),
    "many": Sampling(
        max_tokens=8,
        temperature=0.0,
        logprobs=True,
        logprob_token_ids=tuple(range(100)),
        logit_bias={5: 80.0},
    ),
    "short": Sampling(max_tokens=2, seed=4, logprobs=True, logprob_token_ids=(8,)),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), seed=3, max_position_embeddings=128)


@pytest.mark.parametrize("num_blocks", [256, 10], ids=["room", "preempted"])
def test_named_tokens_have_the_log_probabilities_of_transformers(
    model_dir: Path, tmp_path: Path, num_blocks: int
) -> None:
    engine = start_engine(model_dir, {}, tmp_path, GateSettings(num_blocks=num_blocks)).engine
    found: dict[str, list[TokenOutput]] = {name: [] for name in ASKED}
    for name, sampling in ASKED.items():
        engine.submit(Submit(name, PROMPT, sampling))
    while engine.has_work:
        for output in engine.step().outputs:
            found[output.request_id].append(output)
    assert bool(engine.stats().preemptions) == (num_blocks == 10)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for name in ("named", "many", "short"):
        tokens = [*PROMPT, *(token for each in found[name] for token in each.token_ids)]
        with torch.inference_mode():
            logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
        assert len(found[name]) == ASKED[name].max_tokens
        for position, output in enumerate(found[name], start=len(PROMPT)):
            assert output.top_logprobs is not None
            assert output.logprobs is not None
            (pairs,) = output.top_logprobs
            wanted = [id for id in ASKED[name].logprob_token_ids if id != tokens[position]]
            assert [id for id, _ in pairs] == [tokens[position], *wanted]
            assert pairs[0][1] == output.logprobs[0]
            expected = logprobs[position - 1][[id for id, _ in pairs]].tolist()
            assert [value for _, value in pairs] == pytest.approx(expected, abs=TOLERANCE)
    assert all(len(each.top_logprobs[0]) == 4 for each in found["top"] if each.top_logprobs)
    assert all(each.top_logprobs is None for each in found["plain"])
