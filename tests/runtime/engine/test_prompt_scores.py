"""Scores of prompts: right for every chunking, preemption and company, in bounded slices."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from graft_runtime.engine.plan import StepPlan
from graft_runtime.engine.request import Request
from graft_runtime.engine.runner import Runner, StepHandle
from graft_runtime.ipc.messages import Sampling, Submit, TokenOutput
from tests.support.gate import GateRun, GateSettings, start_engine
from tests.support.tiny_models import make_llama

NUM_TOP = 3
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), seed=3, max_position_embeddings=128)


@dataclass
class Session:
    """An engine, and its outputs by request."""

    run: GateRun
    outputs: dict[str, list[TokenOutput]] = field(default_factory=dict)

    def submit(
        self, name: str, prompt: list[int], max_tokens: int = 6, **sampling: int | bool | None
    ) -> None:
        self.outputs[name] = []
        parameters = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **sampling)  # type: ignore[arg-type] # test shorthand
        self.run.engine.submit(Submit(name, prompt, parameters))

    def finish(self) -> None:
        while self.run.engine.has_work:
            for output in self.run.engine.step().outputs:
                assert output.finish_reason != "error", output.error
                self.outputs[output.request_id].append(output)
        self.run.engine.check_integrity()

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]


@pytest.fixture
def widest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of scored tokens of each step."""
    seen: list[int] = []
    launch = Runner.launch

    def watched(self: Runner, plan: StepPlan) -> StepHandle:
        seen.append(len(plan.prompt_rows_P))
        return launch(self, plan)

    monkeypatch.setattr(Runner, "launch", watched)
    return seen


def reference(model_dir: Path, tokens: list[int]) -> torch.Tensor:
    """Return log probabilities [N, V] of what follows each token, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.inference_mode():
        logprobs: torch.Tensor = model(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
    return logprobs


def check(model_dir: Path, prompt: list[int], outputs: list[TokenOutput]) -> None:
    """Compare a request's first output, and its tokens' alternatives, with the reference."""
    scores = outputs[0].prompt_scores
    assert scores is not None
    assert all(output.prompt_scores is None for output in outputs[1:])
    tokens = [*prompt, *(token for output in outputs for token in output.token_ids)]
    expected = reference(model_dir, tokens)
    assert len(scores) == len(prompt) - 1
    for position, score in enumerate(scores, start=1):
        row = expected[position - 1]
        assert score.logprob == pytest.approx(float(row[prompt[position]]), abs=TOLERANCE)
        assert score.rank == 1 + int((row > row[prompt[position]]).sum())
        assert [id for id, _ in score.top] == row.topk(NUM_TOP).indices.tolist()
    for position, output in enumerate(outputs, start=len(prompt)):
        assert output.top_logprobs is not None
        (top,) = output.top_logprobs
        best = expected[position - 1].topk(NUM_TOP)
        assert [id for id, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        GateSettings(),
        GateSettings(max_batch_tokens=24, max_chunk_tokens=5),
        GateSettings(num_blocks=16, max_batch_tokens=24, max_chunk_tokens=8),
    ],
)
def test_scores_are_transformers_whatever_the_chunks(
    model_dir: Path, tmp_path: Path, settings: GateSettings
) -> None:
    session = Session(start_engine(model_dir, {}, tmp_path, settings))
    wanted = {"prompt_logprobs": NUM_TOP, "logprobs": True, "top_logprobs": NUM_TOP}
    prompts = {
        f"r{length}": [(7 * place + length) % 150 + 3 for place in range(length)]
        for length in (1, 2, 8, 9, 40, 41)
    }
    for name, prompt in prompts.items():
        session.submit(f"{name}-plain", prompt)
        session.submit(name, prompt, **wanted)
        session.run.engine.step()
    # What those first steps said is gone, so all is asked again; the cache is warm by now.
    session.finish()
    for name, prompt in prompts.items():
        session.submit(name, prompt, **wanted)
    session.finish()
    for name, prompt in prompts.items():
        check(model_dir, prompt, session.outputs[name])
        assert session.outputs[name][0].num_cached == 0 or len(prompt) == 1


def test_a_request_keeps_its_blocks_until_its_prompt_is_scored(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(
        start_engine(
            model_dir,
            {},
            tmp_path,
            GateSettings(num_blocks=12, max_batch_tokens=48, max_chunk_tokens=1),
        )
    )
    # The older request grows until the pool is full, token by token, as the younger is scored.
    session.submit("older", [place % 150 + 3 for place in range(40)], max_tokens=50)
    session.run.engine.step()
    wanted = {"prompt_logprobs": NUM_TOP, "logprobs": True, "top_logprobs": NUM_TOP}
    prompt = [(place * 5) % 150 + 3 for place in range(36)]
    session.submit("younger", prompt, **wanted)
    scheduler = session.run.engine._scheduler
    victims: list[int] = []
    preempt = scheduler._preempt

    def watched(request: Request) -> None:
        victims.append(request.num_scored)
        preempt(request)

    monkeypatch.setattr(scheduler, "_preempt", watched)
    session.finish()
    # Whoever was admitted gains a token before it is sent away again.
    assert set(victims) == {len(prompt) - 1}, victims
    check(model_dir, prompt, session.outputs["younger"])


def test_scored_tokens_of_a_step_are_bounded(
    model_dir: Path, tmp_path: Path, widest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(start_engine(model_dir, {}, tmp_path, GateSettings()))
    limits = session.run.engine._scheduler.limits
    object.__setattr__(limits, "max_scored_tokens", 7)
    for number in range(3):
        prompt = [(place * 3 + number) % 150 + 3 for place in range(30)]
        session.submit(
            f"r{number}", prompt, prompt_logprobs=NUM_TOP, logprobs=True, top_logprobs=NUM_TOP
        )
    session.finish()
    assert max(widest) == 7
    assert sum(widest) == 3 * 29


def test_several_answers_compute_their_prompt_once(model_dir: Path, tmp_path: Path) -> None:
    session = Session(start_engine(model_dir, {}, tmp_path, GateSettings(block_size=8)))
    engine = session.run.engine
    prompt = [place % 150 + 3 for place in range(45)]
    engine.submit(Submit("r0", prompt, Sampling(max_tokens=6, seed=5)))
    while not engine.step().outputs:
        pass
    for index in range(1, 8):
        engine.submit(Submit(f"r{index}", prompt, Sampling(max_tokens=6, sample_index=index)))
    while engine.has_work:
        engine.step()
    # Each of the others computes what lies in the last, unfinished block.
    assert engine.stats().prompt_tokens == 45 + 7 * (45 - 40)
